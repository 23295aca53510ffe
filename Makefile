# make demo, make demo-failover, make test: each sets up what it needs (.venv, the C core, Debian packages where this is root).
PYTHON ?= python3
BIN := .venv/bin
SOURCES := $(shell find uffdtrack/_native kvmglue/_native benchmarks/ab/_native native_common -name "[!_]*.[ch]" -o -name build.py)

# Hundreds of tests start the command: each would compile all of it anew.
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo demo-failover test test-slow test-cases lint format bench clean

demo: .venv/ready
	@tools/need redis-server:redis-server redis-benchmark:redis-tools
	$(BIN)/python examples/redis_rollback.py

demo-failover: .venv/ready
	$(BIN)/python examples/failover.py

test: .venv/ready
	@tools/need redis-server:redis-server redis-benchmark:redis-tools gdb:gdb readelf:binutils \
		/usr/lib/postgresql:postgresql nats-server:nats-server
	$(BIN)/pytest -n 2 --dist worksteal -m "not slow"

PROGRAMS := redis-server:redis-server redis-benchmark:redis-tools gdb:gdb readelf:binutils memcached:memcached \
	nginx:nginx-light node:nodejs java:default-jdk-headless nats-server:nats-server chromium:chromium \
	/usr/lib/postgresql:postgresql strace:strace qemu-system-x86_64:qemu-system-x86 sqlite3:sqlite3 vim:vim tmux:tmux ffmpeg:ffmpeg stress-ng:stress-ng

# About half an hour: thousands of epochs, and programs that others wrote.
test-slow: .venv/ready
	@tools/need $(PROGRAMS)
	$(BIN)/pytest -n 2 --dist worksteal -m slow --ignore tests/real/test_cases.py
	$(BIN)/pytest -m slow tests/real/test_cases.py

# Programs from public bug reports, see tests/real/test_cases.py.
export UFFDTRACK_CASES ?= $(wildcard ../shared/cases)
test-cases: .venv/ready
	@tools/need cc:gcc gdb:gdb readelf:binutils setpriv:util-linux
	$(BIN)/pytest -m slow tests/real/test_cases.py

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/ready
	@tools/need gcore:gdb redis-server:redis-server redis-benchmark:redis-tools /usr/lib/postgresql:postgresql
	$(BIN)/python -m benchmarks.checkpoint -o out/bench
	$(BIN)/python -m benchmarks.pause -o out/bench
	$(BIN)/python -m benchmarks.durable -o out/bench
	$(BIN)/python -m benchmarks.steps -o out/bench
	$(BIN)/python -m benchmarks.in_memory -o out/bench
	$(BIN)/python -m benchmarks.bytes -o out/bench --rounds 1
	$(BIN)/python -m benchmarks.tree -o out/bench
	$(BIN)/python -m benchmarks.base -o out/bench
	$(BIN)/python -m benchmarks.lists -o out/bench
	$(BIN)/python -m benchmarks.rate -o out/bench
	$(BIN)/python -m benchmarks.migration -o out/bench
	$(BIN)/python -m benchmarks.replication -o out/bench
	$(BIN)/python -m benchmarks.replicated_steps
	$(BIN)/python -m benchmarks.rollback -o out/bench
	$(BIN)/python -m benchmarks.link -o out/bench
	$(BIN)/uffdtrack bench ab -o out/bench
	$(BIN)/python -m benchmarks.headline -o out/bench --docs docs

.venv/ready: pyproject.toml setup.py tools/nats-server.txt $(SOURCES)
	@tools/need cc:gcc $(PYTHON):python3
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || tools/need /ensurepip:python3-venv
	@tools/need "$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h:python3-dev"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[dev]'
	$(BIN)/pip install --quiet --require-hashes --requirement tools/nats-server.txt
	@touch $@

clean:
	rm -rf .venv build out *.egg-info */_native/*.so */_native/_core.c benchmarks/ab/_native/*.so benchmarks/ab/_native/_core.c
