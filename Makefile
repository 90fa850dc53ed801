# What a developer runs. Python: any with the packages that pyproject.toml names; `make test PYTHON=.venv/bin/python`.
# All that is built lies in build/, except the library itself, which Python looks for in native/.
PYTHON ?= python3
CC ?= cc
JOBS ?= $(shell getconf _NPROCESSORS_ONLN)
CMAKE = cmake -S native -DPython3_EXECUTABLE=$(shell command -v $(PYTHON))
PYTEST = PYTHONPATH=build/pkg $(PYTHON) -m pytest
SANITIZED = tests/test_kernels.py # what `make asan tests="..."` can widen
tests ?= $(SANITIZED)

.PHONY: build test lint asan tsan amx arm clean

build: build/pkg/lutra
	$(CMAKE) -B build/native -DCMAKE_BUILD_TYPE=Release
	cmake --build build/native --parallel $(JOBS)
	install -m 755 build/native/liblutra.* native/
	install -m 644 build/native/_api.py native/

build/pkg/lutra:
	mkdir -p build/pkg
	ln -sfn ../.. build/pkg/lutra

test: build
	$(PYTEST)

lint: build/pkg/lutra
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

# Python itself knows nothing of the sanitizer, so its run-time library comes first, and leaks are not counted: CPython
# has its own. Reports about code that was not built for the thread sanitizer (Python, OpenBLAS) are left out.
asan: build
	$(CMAKE) -B build/asan -DLUTRA_SANITIZE=address
	cmake --build build/asan --parallel $(JOBS) --target lutra
	LUTRA_LIBRARY=build/asan/liblutra.so ASAN_OPTIONS=detect_leaks=0 \
		LD_PRELOAD=$$($(CC) -print-file-name=libasan.so) $(PYTEST) $(tests)

tsan: build
	$(CMAKE) -B build/tsan -DLUTRA_SANITIZE=thread
	cmake --build build/tsan --parallel $(JOBS) --target lutra
	LUTRA_LIBRARY=build/tsan/liblutra.so TSAN_OPTIONS=ignore_noninstrumented_modules=1 OPENBLAS_NUM_THREADS=1 \
		LD_PRELOAD=$$($(CC) -print-file-name=libtsan.so) $(PYTEST) $(tests)

# The kernels for AMX, in software, on a CPU with AVX-512 VNNI.
amx: build
	$(CMAKE) -B build/amx -DLUTRA_EMULATE_AMX=ON
	cmake --build build/amx --parallel $(JOBS) --target lutra
	LUTRA_LIBRARY=build/amx/liblutra.so $(PYTEST) $(tests)

# Needs gcc-aarch64-linux-gnu, libc6-dev-arm64-cross, qemu-user-static and mmdebstrap.
arm: build/pkg/lutra
	PYTHON=$(PYTHON) tests/arm.sh $(tests)

clean:
	rm -rf build native/_api.py native/liblutra.*
