"""Libraries whose own program trains: Ultralytics, MMEngine, rl_games, MACE, Ray Train."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from library_files.folders import fresh


def ultralytics(folder: Path) -> Path:
    """Train a classifier of a few numbers on noise, as `yolo train save_period=1` does."""
    import numpy as np
    import yaml
    from PIL import Image
    from ultralytics import YOLO

    made = fresh(folder, "ultralytics").absolute()
    random = np.random.default_rng(0)
    for part in ("train", "val"):
        for kind in ("dark", "light"):
            images = made / "work" / part / kind
            images.mkdir(parents=True)
            for number in range(4):
                Image.fromarray(random.integers(0, 200, (32, 32, 3), dtype=np.uint8)).save(images / f"{number}.png")
    layers = [[-1, 1, "nn.AdaptiveAvgPool2d", [1]], [-1, 1, "nn.Flatten", []], [-1, 1, "nn.Linear", [8, 2]]]
    model = made / "work" / "small.yaml"
    model.write_text(yaml.safe_dump({"nc": 2, "backbone": [[-1, 1, "Conv", [8, 3, 2]]], "head": layers}))
    YOLO(str(model), task="classify").train(
        data=str(made / "work"), epochs=3, imgsz=32, batch=4, device="cpu", save_period=1, workers=0, plots=False,
        project=str(made), name="run", exist_ok=True, amp=False, val=False, verbose=False,
    )  # fmt: skip
    _keep(made, made / "run" / "weights", "*.pt")
    return made


def mmengine(folder: Path) -> Path:
    """Train with MMEngine's Runner: by epochs, with its EMAHook, and by iterations."""
    import torch
    from mmengine.model import BaseModel
    from mmengine.runner import Runner

    class Data(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 20

        def __getitem__(self, number: int) -> Any:
            return {"inputs": torch.randn(3, generator=torch.Generator().manual_seed(number))}

    class Model(BaseModel):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))

        def forward(self, inputs: Any, mode: str = "loss") -> Any:
            return {"loss": self.net(torch.stack(inputs)).square().mean()}

    made = fresh(folder, "mmengine")
    averaging = {"type": "EMAHook", "momentum": 0.1}
    for name, hooks in {"epochs": [], "averages": [averaging], "iterations": []}.items():
        by_epoch = name != "iterations"
        length = {"max_epochs": 3} if by_epoch else {"max_iters": 15}
        saving = {"type": "CheckpointHook", "interval": 1 if by_epoch else 5, "by_epoch": by_epoch}
        sampler = {"type": "DefaultSampler", "shuffle": False}
        Runner(
            Model(), str(made / "work" / name), experiment_name=name, log_level="ERROR", default_scope="mmengine",
            train_dataloader={"dataset": Data(), "batch_size": 4, "sampler": sampler},
            train_cfg={"by_epoch": by_epoch, **length}, optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.1}},
            default_hooks={"checkpoint": saving}, custom_hooks=hooks,
        ).train()  # fmt: skip
        (made / name).mkdir()
        for path in (made / "work" / name).glob("*.pth"):
            path.rename(made / name / path.name)
    shutil.rmtree(made / "work")
    return made


def rl_games(folder: Path) -> Path:
    """Train with rl_games' Runner in an environment of noise."""
    import gymnasium
    import numpy as np
    from rl_games.common import env_configurations, vecenv
    from rl_games.torch_runner import Runner

    class Noise(vecenv.IVecEnv):  # type: ignore[misc]
        def __init__(self, actors: int) -> None:
            self.random, self.steps = np.random.default_rng(0), np.zeros(actors)

        def reset(self) -> Any:
            return self.random.normal(size=(len(self.steps), 3)).astype(np.float32)

        def step(self, actions: Any) -> Any:
            self.steps = (self.steps + 1) % 4
            return self.reset(), -np.abs(actions).sum(-1).astype(np.float32), self.steps == 0, {}

        def get_number_of_agents(self) -> int:
            return 1

        def get_env_info(self) -> Any:
            spaces = {"observation_space": (3,), "action_space": (1,)}
            return {name: gymnasium.spaces.Box(-1, 1, shape, np.float32) for name, shape in spaces.items()}

    vecenv.register("NOISE", lambda _name, actors, **_: Noise(actors))
    env_configurations.register("noise", {"vecenv_type": "NOISE", "env_creator": lambda **_: None})
    made = fresh(folder, "rl-games")
    sigma = {"mu_activation": "None", "sigma_activation": "None", "mu_init": {"name": "default"},
             "sigma_init": {"name": "const_initializer", "val": 0}, "fixed_sigma": True}  # fmt: skip
    layers = {"units": [4], "activation": "elu", "initializer": {"name": "default"}}
    config = {
        "name": "Small", "env_name": "noise", "device": "cpu", "device_name": "cpu", "train_dir": str(made),
        "full_experiment_name": "run", "reward_shaper": {"scale_value": 1}, "normalize_input": True,
        "normalize_value": True, "normalize_advantage": True, "gamma": 0.99, "tau": 0.95, "ppo": True,
        "learning_rate": 0.01, "lr_schedule": None, "score_to_win": 1e9, "max_epochs": 6, "save_best_after": 100,
        "save_frequency": 2, "grad_norm": 1.0, "entropy_coef": 0.0, "truncate_grads": True, "e_clip": 0.2,
        "horizon_length": 8, "minibatch_size": 16, "mini_epochs": 1, "critic_coef": 1, "clip_value": True,
        "num_actors": 4, "bounds_loss_coef": 0.0, "mixed_precision": False, "print_stats": False,
    }  # fmt: skip
    network = {"name": "actor_critic", "separate": False, "space": {"continuous": sigma}, "mlp": layers}
    model = {"name": "continuous_a2c_logstd"}
    parameters = {"seed": 0, "algo": {"name": "a2c_continuous"}, "model": model, "network": network, "config": config}
    runner = Runner()
    runner.load({"params": parameters})
    runner.run({"train": True, "play": False})
    _keep(made, made / "run" / "nn", "*.pth")
    return made


def mace(folder: Path) -> Path:
    """Save with MACE's CheckpointHandler, as its training does; the last file is of the second stage."""
    import numpy as np
    import torch

    torch.serialization.add_safe_globals([slice])  # which e3nn 0.4.4 asks for when it is imported
    from e3nn import o3
    from mace import modules, tools

    made = fresh(folder, "mace-torch", "mace")
    block = modules.interaction_classes["RealAgnosticInteractionBlock"]
    torch.manual_seed(0)
    model = modules.MACE(
        r_max=3.0, num_bessel=2, num_polynomial_cutoff=3, max_ell=1, interaction_cls=block,
        interaction_cls_first=block, num_interactions=1, num_elements=1, hidden_irreps=o3.Irreps("2x0e"),
        MLP_irreps=o3.Irreps("2x0e"), gate=torch.nn.functional.silu, atomic_energies=np.array([-1.0]),
        avg_num_neighbors=1, atomic_numbers=[1], correlation=1, radial_MLP=[4],
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    state = tools.CheckpointState(model, optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9))
    handler = tools.CheckpointHandler(directory=str(made), tag="small_run-1", keep=True, swa_start=3)
    for epoch in range(4):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        handler.save(state=state, epochs=epoch, keep_last=True)
    return made


def ray(folder: Path) -> Path:
    """Report checkpoints from a training of Ray Train's TorchTrainer."""
    import ray as cluster
    from ray import train
    from ray.train.torch import TorchTrainer

    def loop() -> None:
        import tempfile
        from pathlib import Path

        import torch

        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        for epoch in range(3):
            for _ in range(5):
                net(torch.randn(4, 3)).square().mean().backward()
                optimizer.step()
            with tempfile.TemporaryDirectory() as saved:
                torch.save({"model": net.state_dict(), "epoch": epoch}, Path(saved) / "model.pt")
                train.report({"epoch": epoch}, checkpoint=train.Checkpoint.from_directory(saved))

    made = fresh(folder, "ray").absolute()
    cluster.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)  # and no cluster that is here
    where = train.RunConfig(name="run", storage_path=str(made / "work"))
    TorchTrainer(loop, scaling_config=train.ScalingConfig(num_workers=1), run_config=where).fit()
    cluster.shutdown()
    for path in (made / "work" / "run").glob("checkpoint_*/model.pt"):
        path.parent.rename(made / path.parent.name)
    shutil.rmtree(made / "work")
    return made


def _keep(made: Path, folder: Path, pattern: str) -> None:
    """Move the files of a pattern into the library's folder, and remove what else lies there."""
    for path in folder.glob(pattern):
        path.rename(made / path.name)
    for path in made.iterdir():
        if path.is_dir():
            shutil.rmtree(path)


WRITERS: Mapping[str, Callable[[Path], Path]] = {
    "ultralytics": ultralytics,
    "mmengine": mmengine,
    "rl-games": rl_games,
    "mace": mace,
    "ray": ray,
}
