# Two commands do everything on a machine with Python 3.11 or later: `make demo` and `make test`.
# Others: `make check` (no install), `make check-cuda`, `make check-triton`, `make check-trt`,
# `make gpu`, `make gpu-check`, `make gpu-bench`, `make check-lm-eval`, `make check-arm`, `make clean`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= demo
# two processes, each of them a file of tests at a time
PARALLEL ?= -n 2 --dist loadfile
# runtimes of TensorRT 10 and 11 that load without a GPU: do they take the plugins?
REGISTRIES := $(addprefix tensorrt-lean-cu13,$(addsuffix ==10.16.1.11, -bindings -libs)) \
	tensorrt-lean-cu13==10.16.1.11 $(addprefix tensorrt-dispatch-cu13, -bindings==11.4.0.106 -libs==11.4.0.106) \
	tensorrt-dispatch-cu13==11.4.0.106

.PHONY: demo test install install-dev install-triton install-trt check check-cuda check-triton check-trt gpu gpu-check gpu-bench check-lm-eval check-arm clean

demo: install
	rm -rf $(DEMO)
	$(BIN)/dqexport build --target cpu -o $(DEMO)
	@echo
	@echo 'prompt:  __A123+456='
	@printf 'answer:  ' && $(BIN)/python $(DEMO)/decode.py --prompt '__A123+456='
	@echo
	@echo 'prompt:  _S58982066='
	@printf 'answer:  ' && $(BIN)/python $(DEMO)/decode.py --prompt '_S58982066='
	@echo
	$(BIN)/dqexport inspect $(DEMO)
	@echo
	@echo 'Now: $(BIN)/dqexport run $(DEMO) --prompt "____Rhello="   report: $(DEMO)/report.html'

test: install-dev check

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(VENV)/.python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or later is needed, this is %d.%d" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.installed: $(VENV)/.python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt -e '.[cpu]'
	-$(BIN)/python ort_ops/build.py
	touch $@

$(VENV)/.installed-dev: $(VENV)/.python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt -e '.[cpu,dev]'
	-$(BIN)/python -m pip install --quiet --constraint constraints.txt -e '.[sass]'
	-$(BIN)/python ort_ops/build.py
	-$(BIN)/python ort_ops/build_cuda.py --host
	touch $(VENV)/.installed $@

check:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest $(PARALLEL)

# needs nvcc: kernels for all GPUs, their registers, and their instructions
check-cuda: install-dev
	$(BIN)/pytest -m cuda_compile tests/ort_ops -rs

# a second kernel of every operator, run by Triton's interpreter and compiled for GPUs
install-triton: install-dev
	$(BIN)/python -m pip install --quiet --constraint constraints.txt -e '.[triton]'

check-triton: install-triton
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(BIN)/pytest -m 'triton and not gpu' tests/tools/triton_twins
	$(BIN)/pytest -m 'triton and not gpu' tests/tools/triton_twins/test_compiles.py

install-trt: install-dev
	$(BIN)/python -m pip install --quiet --constraint constraints.txt -e '.[cpu,dev,rtx]'
	$(BIN)/python -m pip install --quiet --no-deps $(REGISTRIES)

check-trt: install-trt
	OMP_NUM_THREADS=1 $(BIN)/pytest $(PARALLEL) -m trt

check-lm-eval: install-dev
	$(BIN)/python -m pip install --quiet -e '.[lm-eval]'
	$(BIN)/pytest -m lm_eval

# need an NVIDIA GPU, nvcc and PyTorch's CUDA build; what needs compute-sanitizer, Triton,
# onnxruntime-gpu, TensorRT or cuda-python besides is skipped where these are missing. Without .venv:
# make gpu BIN=/usr/bin. CHECK takes files and options of pytest, BENCH options of bench_kernels: a
# benchmark that is run again goes on where it ended (bench/gpu.json). `make gpu` takes ten minutes.
CHECK ?= tests
BENCH ?=
gpu:
	-timeout 330 $(MAKE) gpu-check
	$(MAKE) gpu-bench BENCH="--seconds 200 $(BENCH)"
gpu-check:
	@$(BIN)/python -c 'import sys, torch; torch.cuda.is_available() or sys.exit("error: PyTorch finds no NVIDIA GPU here")'
	$(BIN)/python -m pytest -m gpu -rs $(CHECK)
gpu-bench:
	$(BIN)/python -m tools.bench_kernels $(BENCH)

# needs, on Debian: apt-get install g++-aarch64-linux-gnu qemu-user
check-arm:
	$(BIN)/pytest -m arm tests/ort_ops

clean:
	rm -rf $(VENV) $(DEMO) .mypy_cache .pytest_cache .ruff_cache
