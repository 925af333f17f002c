# make demo   the real node on the bundled recording, over DDS; leaves a picture and a recording in demo_output/
# make test   the test suite (installs torch, diffusers and mitsuba for it)
# make lint   ruff
# make sequences   the generated recordings that docs/metric.md measures on, into sequences/; 20 minutes on two cores
#
# Each target makes its own virtual environment once; nothing outside this folder is touched but pip's cache.
# Needs Python 3.10 to 3.13 with venv, make and git. Variables:
#   PYTHON=python3.12                                      another interpreter
#   TORCH_INDEX=https://download.pytorch.org/whl/cpu       where torch comes from; this one has the small CPU build
#   TEST_WORKERS=1                                         processes that share the tests (files, not single tests)
#   PYTEST_ARGS="-k kitti"                                 more arguments for pytest
#   DEMO_ARGS="--rate 0.5"                                 more arguments for the demo
#   SEQUENCES=sequences                                    folder of the generated recordings

PYTHON ?= python3
TORCH_INDEX ?=
TEST_WORKERS ?= 2
PYTEST_ARGS ?=
DEMO_ARGS ?=
SEQUENCES ?= sequences

PIP_FLAGS = --disable-pip-version-check --no-input -q
# A sourced ROS installation would put its own rclpy before the one in the environment.
CLEAN = env -u PYTHONPATH -u AMENT_PREFIX_PATH -u LD_LIBRARY_PATH -u RMW_IMPLEMENTATION -u ROS_DOMAIN_ID
TORCH_REQUIREMENT = $(shell grep '^torch==' requirements-test.txt)

RECORD = $(CLEAN) .venv-test/bin/python -m trainer record --pose --image-noise 1.5 --samples 8 --max-mb 0

.PHONY: demo test lint sequences clean

demo: .venv-demo/.ready
	@$(CLEAN) .venv-demo/bin/python -m marigold_ros.demo $(DEMO_ARGS)

# A worker that dies ends the run: xdist 3.8 hands its successor the files already done, and then waits for ever.
test: .venv-test/.ready
	$(CLEAN) OMP_NUM_THREADS=1 .venv-test/bin/python -m pytest -n $(TEST_WORKERS) --dist loadfile --max-worker-restart 0 \
		-p no:launch_testing -p no:launch_testing_ros_pytest_entrypoint $(PYTEST_ARGS)

lint: .venv-lint/.ready
	.venv-lint/bin/ruff check .
	.venv-lint/bin/ruff format --check .

sequences: $(addprefix $(SEQUENCES)/,still drive movers turning)

# Each is made once; a recording appears only when it is whole.
$(SEQUENCES)/still: | .venv-test/.ready
	$(RECORD) --out $@ --family warehouse --seed 21 --frames 100 --still

$(SEQUENCES)/drive: | .venv-test/.ready
	$(RECORD) --out $@ --family street --seed 33 --frames 150 --speed 2.5

$(SEQUENCES)/movers: | .venv-test/.ready
	$(RECORD) --out $@ --family warehouse --seed 33 --frames 100 --still --movers 6

$(SEQUENCES)/turning: | .venv-test/.ready
	$(RECORD) --out $@ --family corridor --seed 33 --frames 160 --rate 20 --speed 0.5 --turn 60

clean:
	rm -rf .venv-demo .venv-test .venv-lint demo_output

.venv-demo/.ready: requirements-demo.txt
	@$(call make_venv,.venv-demo)
	@echo "Installing the demo's packages into .venv-demo (about a minute) ..."
	@.venv-demo/bin/python -m pip install $(PIP_FLAGS) -r requirements-demo.txt
	@touch $@

.venv-test/.ready: requirements-demo.txt requirements-test.txt
	@$(call make_venv,.venv-test)
	@echo "Installing the tests' packages, torch among them, into .venv-test (some minutes) ..."
	@.venv-test/bin/python -m pip install $(PIP_FLAGS) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH_REQUIREMENT)
	@.venv-test/bin/python -m pip install $(PIP_FLAGS) -r requirements-test.txt
	@touch $@

.venv-lint/.ready: requirements-test.txt
	@$(call make_venv,.venv-lint)
	@.venv-lint/bin/python -m pip install $(PIP_FLAGS) "$$(grep '^ruff==' requirements-test.txt)"
	@touch $@

# $(call make_venv,FOLDER): a virtual environment without anything of the calling shell's ROS or Python settings.
define make_venv
$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 13) else "Python %d.%d: 3.10 to 3.13 is needed; name another one: make PYTHON=python3.12 ..." % v)' || exit 1; \
$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "This Python cannot make virtual environments: sudo apt-get install python3-venv (or make PYTHON=...)" >&2; exit 1; }; \
rm -rf $(1) && $(PYTHON) -m venv $(1)
endef
