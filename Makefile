# Everything runs in .venv, made from requirements.lock; only Python >= 3.11 (with venv) and make are needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Trust the machine's certificate store, as pip and curl do: uv alone would not.
export UV_SYSTEM_CERTS := 1
# Compiled once at installation; else each of Airflow's processes compiles all of it anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test quick fuzz system browser stores chaos cluster scenes soak matrix gallery bench check types dist sbom docs lock clean help

help:
	@echo "make demo    run an example DAG on a throw-away Airflow with a stand-in API and S3"
	@echo "make test    the tests that start no whole Airflow, in minutes"
	@echo "make fuzz    a million odd answers of the API (ANSWERS=1000000)"
	@echo "make quick   the tests of what needs no server, in seconds"
	@echo "make system  the tests on a running Airflow: kills at every point, the gallery, the sandbox, the DAGs of the docs"
	@echo "make browser install the browser that shows the gallery to its tests (as root)"
	@echo "make stores  install one more S3 server with npm, and test the mirror on it"
	@echo "make chaos   minutes of random kills"
	@echo "make cluster hundreds of images on an Airflow cluster whose parts fail in turn (a root installs PostgreSQL and Redis)"
	@echo "make scenes  two attempts of a task at once, late writes, clicks amid a submit, on that cluster"
	@echo "make soak    steady load on that cluster: memory, sockets and files stay flat (MINUTES=30)"
	@echo "make matrix  the tests on every supported Airflow (SHORT=1: a few on three; NAMES=3.0-lowest: one)"
	@echo "make gallery the gallery's tests, browser included, on Airflow 3.1 (NAMES=3.4-newest: on another one)"
	@echo "make bench   what a wait, a mirrored image and a batch cost, beside official providers and by hand"
	@echo "make check   lint, format and types"
	@echo "make types   how completely the public names are typed"
	@echo "make dist    the wheel and the source distribution, into dist/"
	@echo "make sbom    the wheel's dependencies as a CycloneDX document, into dist/"
	@echo "make docs    the documentation, into site/"
	@echo "make setup   create .venv from requirements.lock, as every other target does by itself"
	@echo "make clean   remove .venv and all that these targets have made"
	@echo "make lock    resolve requirements.lock and the locks of the matrix again"

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	awk '/^[^ ]/ { of_uv = /^uv==/ } of_uv' requirements.lock > $(VENV)/uv.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(VENV)/uv.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --compile-bytecode -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(READY)
	$(BIN)/python -m airflow_provider_gptimg.sandbox $(if $(KEEP),--keep)

# Three processes for two cores, since a process waits for a third of its time. A file stays in one process, since its
# tests share what they start; conftest.py has the long files begin first.
test: $(READY)
	$(BIN)/python -m pytest --numprocesses $$(( $$(nproc 2> /dev/null || getconf _NPROCESSORS_ONLN) * 3 / 2 )) --dist loadfile --no-loadscope-reorder -m "not (system or chaos or registry)" $(PYTEST_ARGS)

fuzz: $(READY)
	FUZZ_ANSWERS=$(or $(ANSWERS),1000000) $(BIN)/python -m pytest tests/unit/hooks/test_hook_fuzzed.py -s $(PYTEST_ARGS)

quick: $(READY)
	$(BIN)/python -m pytest --quiet -m "not system" -k "not S3" --ignore tests/unit/hooks --ignore tests/unit/test_journal_interleavings.py \
		tests/unit tests/test_layers.py tests/mirroring/test_image_formats.py $(PYTEST_ARGS)

system: $(READY)
	$(BIN)/python -m pytest -m system $(PYTEST_ARGS)

# Debian's, for the tests of the gallery; without it they are skipped.
browser:
	@command -v chromium || command -v chromium-browser || command -v google-chrome || { \
		[ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null || { \
			echo "Chromium is missing, and only root can install it: apt-get install chromium" >&2; exit 1; }; \
		apt-get update --quiet && apt-get install --quiet --yes --no-install-recommends chromium; }

# An S3 server that ignores conditions; without it its tests are skipped. SeaweedFS comes with the setup.
stores: $(READY)
	npm install --silent --no-audit --no-fund --prefix $(VENV)/stores s3rver@3.7.1
	$(BIN)/python -m pytest tests/mirroring/test_any_store.py $(PYTEST_ARGS)

chaos: $(READY)
	$(BIN)/python -m pytest -m chaos $(PYTEST_ARGS)

# By default the whole load, whose report is a page of the docs. CLUSTER_ARGS="--size 0.1 --faults 2" tries it out.
cluster: .venv-cluster
	.venv-cluster/bin/python tests/cluster/run.py $(or $(CLUSTER_ARGS),--report docs/cluster.md)

scenes: .venv-cluster
	.venv-cluster/bin/python tests/cluster/scenes.py $(or $(CLUSTER_ARGS),--report docs/attempts.md)

soak: MINUTES := 30
soak: .venv-cluster
	.venv-cluster/bin/python tests/cluster/soak.py --minutes $(MINUTES) --report docs/soak.md

.PHONY: .venv-cluster
.venv-cluster: $(READY)
	@command -v redis-server > /dev/null && ls /usr/lib/postgresql/*/bin/postgres > /dev/null 2>&1 || { \
		[ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null || { \
			echo "PostgreSQL and Redis are missing: apt-get install postgresql redis-server" >&2; exit 1; }; \
		apt-get update --quiet && apt-get install --quiet --yes --no-install-recommends postgresql redis-server; }
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python .venv-cluster
	$(BIN)/uv pip install --quiet --python .venv-cluster/bin/python --require-hashes --compile-bytecode \
		-r tests/cluster/requirements.lock
	$(BIN)/uv pip install --quiet --python .venv-cluster/bin/python --no-deps --no-build-isolation --editable .

matrix: $(READY)
	$(BIN)/python -m pytest -m registry tests/compat
	$(BIN)/python tests/compat/matrix.py run $(if $(SHORT),--short) $(NAMES)
	$(if $(SHORT)$(NAMES),,$(BIN)/python tests/compat/matrix.py report)

gallery: $(READY)
	CI=true $(BIN)/python tests/compat/matrix.py gallery $(NAMES)

# Tables on stdout, progress on stderr; 20 minutes on two cores that do nothing else, an hour with BENCH_ARGS=--full.
bench: $(READY)
	@$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python .venv-bench
	@$(BIN)/uv pip install --quiet --python .venv-bench/bin/python --require-hashes --compile-bytecode \
		-r benchmarks/requirements.lock
	@$(BIN)/uv pip install --quiet --python .venv-bench/bin/python --no-deps --no-build-isolation --editable .
	@for benchmark in polling_schedule polling_cost polling_on_time waiting_dag mirroring batch; do \
		echo "## $$benchmark, $$(git describe --always), load average $$(cut -d' ' -f1 /proc/loadavg)"; \
		.venv-bench/bin/python -m benchmarks.$$benchmark $(BENCH_ARGS) || exit 1; \
	done

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Pyright looks at an installed package. The environment borrows what the wheel depends on; nobody imports the examples.
types: dist
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-types
	$(BIN)/uv pip install --quiet --python .venv-types/bin/python --no-deps dist/*.whl
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > \
		"$$(.venv-types/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/dependencies.pth"
	rm -r .venv-types/lib/python*/site-packages/airflow_provider_gptimg/example_dags
	PATH="$(CURDIR)/.venv-types/bin:$$PATH" $(BIN)/basedpyright --ignoreexternal --verifytypes airflow_provider_gptimg \
		|| [ $$? = 1 ] # some are not known: what is made of Airflow's classes

dist: $(READY)
	rm -f dist/*.whl dist/*.tar.gz
	$(BIN)/uv build --quiet --python $(BIN)/python --no-build-isolation

# Without direct_url.json, which says where on this machine the wheel was.
sbom: dist
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-sbom
	$(BIN)/uv pip install --quiet --python .venv-sbom/bin/python --constraint requirements.lock dist/*.whl
	rm .venv-sbom/lib/python*/site-packages/airflow_provider_gptimg-*.dist-info/direct_url.json
	$(BIN)/cyclonedx-py environment --output-reproducible --output-file dist/airflow-provider-gptimg.cdx.json \
		.venv-sbom/bin/python

docs: $(READY)
	$(BIN)/python -m sphinx --fail-on-warning --nitpicky --fresh-env --quiet -d build/doctrees docs site

lock: $(READY)
	echo "apache-airflow>=3.3,<3.4" | $(BIN)/uv pip compile pyproject.toml --extra sandbox --group dev \
		--constraint - --universal --python-version 3.11 --upgrade --generate-hashes --quiet \
		--no-emit-index-url --no-emit-package airflow-provider-gptimg --no-annotate --no-header \
		--output-file requirements.lock
	$(BIN)/python tests/compat/matrix.py lock

clean:
	rm -rf .venv .venv-* build dist site .pytest_cache .mypy_cache .ruff_cache gptimg-out
