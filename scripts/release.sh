#!/usr/bin/env bash
# Release weights from the checkpoints of a training: check, average, verify, sum up. See usage below, and docs/ci/.
set -euo pipefail

usage() {
    cat <<'END'
usage: scripts/release.sh CKPTS... OUT OPTION...

CKPTS  the folder that the training filled, or its checkpoints
OUT    what to write: a name without a suffix for a folder, NAME.safetensors or NAME.pt for one file;
       with --output OUT among the options, all that stands before them is CKPTS
OPTION those of `ema-cli average`: a law, as --half-life 50ba, and what is demanded, as --min-count 10 --strict;
       or --recipe MANIFEST, to repeat a release to the byte. With --dry-run nothing is written and nothing verified.
       Not --json, as what is printed is a path, nor --no-manifest, as nothing could be verified, nor --part.

Steps, each of which ends the release with its own exit code if it fails:
  inspect  shows the run, and checks what is demanded of it; reads no tensor            (3, 4, 6)
  average  writes OUT with its manifest and sums, with the sums of all that was read    (3, 4, 5, 6)
  verify   checks each file, tensor and number of OUT against the manifest              (6)
  again    averages the first elements of each tensor once more, and compares           (6)
           (with --like-input it does all that verify does, too, which is left out)
  sums     checks OUT as anybody can who downloads it: sha256sum --check                (1)

Environment:
  SUMMARY  a file to append Markdown to; on GitHub Actions its own by default
  AGAIN    sample (default); all: the whole average is made once more; none

The path of what was written is all that goes to stdout.
END
}

say() { printf '%s\n' "$*" >&2; }

on_actions() { [[ ${GITHUB_ACTIONS:-} == true ]]; }

summary=${SUMMARY:-${GITHUB_STEP_SUMMARY:-}}

# Run a step: announce it, and end the release with its exit code if it fails. What it prints is for people, or, where
# `keep` names a file, goes there.
step() {
    local name=$1 code=0
    shift
    if on_actions; then say "::group::$name"; else say "== $name"; fi
    say "+$(printf ' %q' "$@")"
    if [[ -n ${keep:-} ]]; then "$@" >"$keep" || code=$?; else "$@" >&2 || code=$?; fi
    if on_actions; then say "::endgroup::"; fi
    if ((code != 0)); then
        say "release: $name failed (exit $code)"
        if on_actions; then say "::error title=release::$name failed (exit $code)"; fi
        if [[ -n $summary ]]; then
            printf '### Not released: %s failed (exit %s)\n\n' "$name" "$code" >>"$summary" || true
        fi
        exit "$code"
    fi
}

check_sums() {
    local sums found=0
    while IFS= read -r -d '' sums; do
        found=1
        (cd "$(dirname "$sums")" && sha256sum --check --strict --quiet -- "$(basename "$sums")") || return 1
    done < <(find "$@" -print0 | sort -z)
    ((found))
}

# Of one file they lie beside it; in a folder, or in each of several, inside.
sums_of_output() {
    if [[ -d $1 ]]; then
        check_sums "$1" -maxdepth 2 -type f '(' -name SHA256SUMS -o -name '*.sha256' ')'
    else
        check_sums "$1.sha256" -type f
    fi
}

positional=()
while (($#)) && [[ $1 != -* ]]; do
    positional+=("$1")
    shift
done
case ${1:-} in
    -h | --help)
        usage
        exit 0
        ;;
esac
fail_usage() {
    usage >&2
    if (($#)); then say "release: $*"; fi
    exit 2
}

again=${AGAIN:-sample}
if ((${#positional[@]} == 0 || $# == 0)) || [[ $again != @(sample|all|none) ]]; then fail_usage; fi
output=

# What only `average` knows, `inspect` is not told; of a manifest it knows no law, and so not what would enter.
replayed=
for each in "$@"; do
    if [[ $each == --recipe || $each == --recipe=* ]]; then replayed=yes; fi
done
inspected=()
average_options=()
threads=()
read_as=()
against=()
like_input=
dry=
while (($#)); do
    # The value of an option may stand behind it, or behind an equals sign; of -o, directly, too.
    case $1 in
        --*=*) name=${1%%=*} value=${1#*=} given=("$1") ;;
        -o?*) name=-o value=${1#-o} given=("$1") ;;
        -f | --force | -q | --quiet | -fq | -qf | --dry-run | --strict | --checksum | --json | --no-manifest | \
            --bias-correction | --skip-damaged | --ignore-clocks | --keep-prefix | --masters | --like-input | \
            --allow-approximate | --allow-non-finite | --anonymous | --any-sum | --no-cache | --series)
            name=$1 value='' given=("$1")
            ;;
        -*)
            if (($# < 2)); then fail_usage "$1 needs a value"; fi
            name=$1 value=$2 given=("$1" "$2")
            shift
            ;;
        *) fail_usage "$1 stands behind the options" ;;
    esac
    shift
    case $name in
        --output | -o)
            output=$value
            continue
            ;;
        --summary)
            summary=$value
            continue
            ;;
        --checksum) continue ;; # always given
        --json | --no-manifest) fail_usage "$name is not for a release" ;;
        --part) fail_usage "$name makes a part of it; average in parts first, and verify what comes of them" ;;
        --dry-run) dry=yes ;;
        --threads) threads=("${given[@]}") ;;
        --anonymous | --no-cache) inspected+=("$name") read_as+=("$name") ;;
        --merge-into) inspected+=("${given[@]}") against+=("${given[@]}") ;;
        --base) inspected+=("${given[@]}") against+=(--against "$value") ;;
        --on) if [[ $again == all ]]; then against+=("${given[@]}"); fi ;; # a sample is small
        --dtype | --max-shard-size | --max-memory | --recipe | --sign | --drop | --exact-lora) ;;
        --min-count | --max-share) if [[ -z $replayed ]]; then inspected+=("${given[@]}"); fi ;;
        --like-input) like_input=yes against+=("$name") ;;
        -f | --force | -q | --quiet | -fq | -qf | --allow-non-finite | --allow-approximate) ;;
        *) inspected+=("${given[@]}") ;;
    esac
    average_options+=("${given[@]}")
done
checkpoints=("${positional[@]}")
if [[ -z $output ]]; then
    if ((${#positional[@]} < 2)); then fail_usage; fi
    output=${positional[-1]}
    checkpoints=("${positional[@]:0:${#positional[@]}-1}")
fi
if [[ -n $summary ]]; then average_options+=(--summary "$summary"); fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

step inspect ema-cli inspect "${checkpoints[@]}" ${inspected[@]+"${inspected[@]}"}
if [[ -n $dry ]]; then
    step average ema-cli average "${checkpoints[@]}" --output "$output" --checksum "${average_options[@]}"
    exit
fi
keep=$work/path step average ema-cli average "${checkpoints[@]}" --output "$output" --checksum "${average_options[@]}"
written=$(<"$work/path")
if [[ $written == -* ]]; then written=./$written; fi
# What a file of a trainer's own form names is no problem where it is compared with the newest checkpoint: `again` does both.
if [[ -z $like_input || $again == none ]]; then
    step verify ema-cli verify "$written" ${threads[@]+"${threads[@]}"}
fi
for each in "${checkpoints[@]}"; do against+=(--against "$each"); done
against+=(${read_as[@]+"${read_as[@]}"})
if [[ $again == sample ]]; then against+=(--sample); fi
if [[ $again != none ]]; then
    step again ema-cli verify "$written" "${against[@]}" ${threads[@]+"${threads[@]}"}
fi
step sums sums_of_output "$written"
if [[ -n $summary ]]; then
    printf 'Verified: every file and tensor by its manifest and its sums; made again from the checkpoints: %s.\n\n' \
        "$again" >>"$summary"
fi
printf '%s\n' "$written"
