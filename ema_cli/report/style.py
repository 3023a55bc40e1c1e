"""The style of a report: light and dark, for wide screens, telephones and paper. No file, no font, no script."""

from __future__ import annotations

_LIGHT = {
    "page": "#f6f7f9", "card": "#ffffff", "ink": "#1b1f26", "soft": "#5a6472", "rule": "#e2e6eb", "grid": "#edf0f3",
    "accent": "#1f5fbf", "minus": "#b5481a", "gap": "#f3ecdb", "warn": "#fff7e3", "warn-ink": "#6a4700",
    "warn-rule": "#e6bd55", "none": "#d9dce0",
}  # fmt: skip
_DARK = {
    "page": "#0e1116", "card": "#161b22", "ink": "#e6e9ee", "soft": "#9ba6b4", "rule": "#2b323c", "grid": "#222933",
    "accent": "#79b0ff", "minus": "#ff9c66", "gap": "#2a2617", "warn": "#2b2410", "warn-ink": "#f3d88f",
    "warn-rule": "#8c6f22", "none": "#3a424d",
}  # fmt: skip
# From near to far: a far value stands out from the page.
_LIGHT_SHADES = (
    "#eaf2fb", "#d3e3f3", "#b3d1e9", "#8abfdd", "#5fa6d1", "#3d8dc3", "#2171b5", "#0b539c", "#082f6a",
)  # fmt: skip
_DARK_SHADES = (
    "#182230", "#1a3049", "#1e4369", "#255a8b", "#3474ac", "#4c90c9", "#73afde", "#a5ccee", "#dcebfa",
)  # fmt: skip


def _variables(colours: dict[str, str], shades: tuple[str, ...]) -> str:
    every = {**colours, **{f"s{number}": colour for number, colour in enumerate(shades)}}
    return "".join(f"--{name}:{colour};" for name, colour in every.items())


STYLE = f"""
:root{{color-scheme:light dark;{_variables(_LIGHT, _LIGHT_SHADES)}}}
@media(prefers-color-scheme:dark){{:root{{{_variables(_DARK, _DARK_SHADES)}}}}}
*{{box-sizing:border-box}}
body{{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,"Liberation Sans",sans-serif;overflow-wrap:anywhere}}
main{{max-width:1120px;margin:0 auto;padding:28px 20px 40px}}
h1{{font-size:27px;line-height:1.2;margin:0 0 6px;letter-spacing:-.01em}}
h2{{font-size:18px;margin:0 0 4px}}
h3{{font-size:15px;margin:20px 0 4px}}
p{{margin:4px 0 10px}}
.lead{{font-size:17px;margin:0}}
.soft,figcaption,dt,th{{color:var(--soft)}}
section,.warn{{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:18px 20px;
margin:16px 0 0}}
.warn{{background:var(--warn);border-color:var(--warn-rule);color:var(--warn-ink);padding:10px 16px}}
.warn ul{{margin:0;padding:0 0 0 18px}}
.warn strong{{display:block}}
.tiles{{display:grid;grid-template-columns:repeat(auto-fit,minmax(134px,1fr));gap:12px;margin:18px 0 0;padding:0}}
.tiles div{{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:12px 14px}}
.tiles div{{display:flex;flex-direction:column-reverse;justify-content:flex-end}}
.tiles dd{{margin:0;font-size:22px;line-height:1.25;font-weight:600;letter-spacing:-.01em}}
.tiles dd small{{font-size:14px;font-weight:400;color:var(--soft);letter-spacing:0}}
.tiles dt{{font-size:13px}}
figure{{margin:10px 0 0}}
figcaption{{font-size:13px;margin:6px 0 0}}
svg{{display:block;width:100%;height:auto;overflow:visible}}
svg text{{font-size:12px;fill:var(--soft);stroke:var(--card);stroke-width:3px;stroke-linejoin:round;paint-order:stroke}}
svg .name{{fill:var(--ink);font-size:12.5px}}
svg .note{{fill:var(--ink);font-weight:600}}
.end{{text-anchor:end}}.mid{{text-anchor:middle}}
.grid{{stroke:var(--grid)}}.axis{{stroke:var(--soft)}}
.gap{{fill:var(--gap)}}
.mean{{stroke:var(--ink);stroke-dasharray:4 4}}
.weight{{stroke:var(--accent);fill:var(--accent)}}.minus{{stroke:var(--minus);fill:var(--minus)}}
.zero{{stroke:var(--soft);fill:var(--card)}}
.line{{stroke:var(--accent);fill:none;stroke-width:1.6;stroke-linejoin:round}}
.lead-line{{stroke:var(--soft)}}
.noted{{fill:var(--card);stroke:var(--ink);stroke-width:1.8}}
svg .none{{fill:var(--none)}}
{"".join(f".s{number}{{fill:var(--s{number});background:var(--s{number})}}" for number in range(9))}
.none{{background:var(--none)}}
.narrow{{display:none;max-width:560px}}
.legend{{display:flex;flex-wrap:wrap;gap:4px 16px;font-size:13px;color:var(--soft);margin:8px 0 0;padding:0;
list-style:none}}
.legend i{{display:inline-block;width:22px;height:12px;border-radius:2px;margin:0 6px 0 0;border:1px solid var(--rule)}}
.scale{{gap:6px 0}}.scale li{{flex:0 1 84px;font-size:12px}}
.scale i{{display:block;width:auto;margin:0 0 2px;border-radius:0}}
.dot{{background:var(--accent)}}.legend .dot{{width:11px;height:11px;border:0;border-radius:6px;vertical-align:-1px}}
.dot.minus{{background:var(--minus)}}.legend .dot.gap{{width:22px;border-radius:0;background:var(--gap)}}
.legend .dash{{height:2px;border:0;vertical-align:middle;
background:repeating-linear-gradient(90deg,var(--ink) 0 4px,transparent 4px 8px)}}
.scroll{{overflow-x:auto;margin:8px 0 0}}
table{{border-collapse:collapse;width:100%;font-size:14px}}
th{{font-weight:400;text-align:left;font-size:13px;white-space:nowrap}}
td,th{{padding:4px 14px 4px 0;border-bottom:1px solid var(--grid);vertical-align:top}}
td:last-child,th:last-child{{padding-right:0}}
.word{{white-space:nowrap}}td:first-child:not(.word){{min-width:112px}}
.number{{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}}
.bar{{width:22%;min-width:90px}}
.bar span{{display:block;height:9px;margin:7px 0 0;background:var(--accent);border-radius:0 3px 3px 0}}
.bar .minus{{background:var(--minus)}}
code{{font:12.5px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace;word-break:break-all}}
dl.pairs{{display:grid;grid-template-columns:max-content 1fr;gap:3px 18px;margin:8px 0 0}}
dl.pairs dd{{margin:0}}
summary{{cursor:pointer;color:var(--accent);margin:10px 0 0}}
footer{{color:var(--soft);font-size:13px;margin:20px 2px 0}}
@media(max-width:700px){{
main{{padding:18px 12px 30px}}
section{{padding:14px 13px}}
h1{{font-size:22px}}
.wide{{display:none}}.narrow{{display:block}}
.tiles{{grid-template-columns:1fr 1fr;gap:8px}}
.tiles dd{{font-size:19px}}
dl.pairs{{grid-template-columns:1fr;gap:0}}dl.pairs dd{{margin:0 0 6px}}
td,th{{padding-right:9px}}
th,th.number{{white-space:normal}}
.scale li{{flex-basis:25%}}
#files thead{{display:none}}#files tr{{display:block;border-bottom:1px solid var(--grid);padding:5px 0}}
#files td{{display:inline-block;border:0;padding:0 10px 0 0}}
}}
@media print{{body{{background:#fff}}section,.tiles div{{break-inside:avoid}}}}
"""
