# Thin: each target is a call of `python -m pipeline` or `python -m trainer`, the real interface.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
RUN    := $(BIN)/python -m

# Where the demo and a `make preprocess` without DATA work.
WORK   ?= work
DEMO   := $(WORK)/demo

.DEFAULT_GOAL := help
.PHONY: help
help: ## print this list
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | expand -t 18

# --- environment -------------------------------------------------------------------------------

.PHONY: venv
venv: $(VENV)/installed ## make .venv, every version pinned by constraints.txt
# uv installs the same wheels as pip in a fraction of the time.
$(VENV)/installed: setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, not " + sys.version.split()[0] + "; try make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	@echo "making $(VENV) from setup.py and constraints.txt"
	@$(PYTHON) -m venv $(VENV)
	@$(RUN) pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt \
		build setuptools wheel --editable '.[trainer,test,lint]'
	@touch $@

# --- the two programs --------------------------------------------------------------------------

# Passed on only when given: the defaults are the program's own.
flag = $(if $($(1)),--$(2)=$($(1)))

.PHONY: demo
demo: venv ## main job: draw a sample, preprocess it, train, evaluate, predict
	@$(RUN) pipeline sample $(DEMO)/sample --layout=devkit
	@$(RUN) pipeline preprocess --data_dir=$(DEMO)/sample --output_dir=$(DEMO)/shards \
		--image_size=64 --examples_per_shard=64
	@$(RUN) pipeline verify $(DEMO)/shards
	@$(RUN) trainer train --config=demo --data_dir=$(DEMO)/shards --model_dir=$(DEMO)/model
	@$(RUN) trainer evaluate --data_dir=$(DEMO)/shards --model_dir=$(DEMO)/model
	@$(RUN) trainer predict --model_dir=$(DEMO)/model $(DEMO)/sample/cars_test/00001.jpg
	@echo
	@echo "the pictures and their colours: $(DEMO)/shards/report.html"
	@echo "the model, curves, confusion:   $(DEMO)/model"

.PHONY: preprocess
preprocess: venv ## DATA=pictures OUT=shards [RUNNER=...]: pictures to TFRecord shards
ifeq ($(DATA),)
	@echo "no DATA given: drawing a sample in $(WORK)/sample"
	@$(RUN) pipeline sample $(WORK)/sample
endif
	@$(RUN) pipeline preprocess --data_dir=$(or $(DATA),$(WORK)/sample) --output_dir=$(or $(OUT),$(WORK)/shards) \
		$(call flag,LAYOUT,layout) $(call flag,COLORS,colors) $(call flag,IMAGE_SIZE,image_size) \
		$(call flag,FIT,fit) $(call flag,DECODE,decode) $(call flag,CROP,crop) $(call flag,CROP_MARGIN,crop_margin) \
		$(call flag,ENCODING,encoding) $(call flag,QUANTIZER,quantizer) \
		$(call flag,EXAMPLES_PER_SHARD,examples_per_shard) \
		$(call flag,MAX_REJECT_FRACTION,max_reject_fraction) $(call flag,RUNNER,runner) \
		$(call flag,PROJECT,project) $(call flag,REGION,region) $(FLAGS)

.PHONY: verify
verify: venv ## DATA=shards: read every record back
	@$(RUN) pipeline verify $(or $(DATA),$(WORK)/shards)

.PHONY: train
train: venv ## DATA=shards MODEL=folder [CONFIG= EPOCHS=]: train on this machine
	@$(RUN) trainer train --data_dir=$(or $(DATA),$(WORK)/shards) --model_dir=$(or $(MODEL),$(WORK)/model) \
		$(call flag,CONFIG,config) $(call flag,EPOCHS,epochs) $(call flag,BATCH_SIZE,batch_size) $(FLAGS)

.PHONY: evaluate
evaluate: venv ## DATA=shards MODEL=folder: top-1, top-5, confusion matrix
	@$(RUN) trainer evaluate --data_dir=$(or $(DATA),$(WORK)/shards) --model_dir=$(or $(MODEL),$(WORK)/model) $(FLAGS)

.PHONY: predict
predict: venv ## MODEL=folder IMAGE=some.jpg: the likeliest classes
	@$(if $(IMAGE),,$(error give IMAGE=some.jpg))$(RUN) trainer predict --model_dir=$(or $(MODEL),$(WORK)/model) $(IMAGE) $(FLAGS)

# Not after `venv`: a TPU VM has an older Python, and the script brings the right one.
.PHONY: train-tpu
train-tpu: ## [TPU_NAME= ZONE= PROJECT=] DATA=gs://… MODEL=gs://…: train on a TPU slice, or on this TPU VM
	@TPU_NAME='$(TPU_NAME)' ZONE='$(ZONE)' PROJECT='$(PROJECT)' DRY_RUN='$(DRY_RUN)' \
		$(PYTHON) -I trainer/tpu_vm.py auto --venv=$(VENV) -- \
		--data_dir=$(or $(DATA),$(WORK)/shards) --model_dir=$(or $(MODEL),$(WORK)/model) \
		$(call flag,CONFIG,config) $(call flag,EPOCHS,epochs) $(call flag,BATCH_SIZE,batch_size) $(FLAGS)

# The check's own flags and those of `train`; `make check-tpu FLAGS=--largest_batch`.
.PHONY: check-tpu
check-tpu: tpu-compiler ## [TOPOLOGY=v5e:2x4 HOSTS= CONFIG= DATA=]: compile for a slice of TPU, without one
	@$(RUN) trainer check-tpu --topology=$(or $(TOPOLOGY),v5e:2x4) $(call flag,HOSTS,hosts) \
		$(call flag,CONFIG,config) $(call flag,DATA,data_dir) $(call flag,BATCH_SIZE,batch_size) $(FLAGS)

.PHONY: check-tpu-long
check-tpu-long: tpu-compiler ## the same for ResNet50 at 224 and 448 pixels; takes long
	@$(RUN) trainer check-tpu --topology=v5e:2x4 --model=ResNet50 --batch_size=512 --image_size=256 $(FLAGS)
	@$(RUN) trainer check-tpu --topology=v5e:2x4 --model=ResNet50 --batch_size=128 --image_size=512 $(FLAGS)

.PHONY: tpu-compiler
tpu-compiler: venv
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[tpu]'

# --- for who works on it -----------------------------------------------------------------------

.PHONY: test
test: venv ## the tests
	@$(RUN) pytest -q -n auto --dist worksteal $(FLAGS)

.PHONY: engines
engines: venv
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[gcp,engines]'

# Go's module proxy has Prism, Beam's engine in Go, of the same version; without Go its tests skip.
PRISM_VERSION := $(shell sed -n 's/^apache-beam==//p' constraints.txt)
.PHONY: prism
prism:
	@command -v prism >/dev/null || test -x "$$(go env GOPATH 2>/dev/null)/bin/prism" \
		|| go install github.com/apache/beam/sdks/v2/go/cmd/prism@v$(PRISM_VERSION) \
		|| echo "no prism: its tests will be skipped"

.PHONY: test-engines
test-engines: engines prism ## the job on Flink, Prism, gs:// and as Dataflow runs it, on loopback
	@$(RUN) pytest -q -rs tests/engines $(FLAGS)

.PHONY: test-flink
test-flink: engines ## the job on a Flink cluster on loopback, one task manager killed
	@$(RUN) pytest -q -rs -s tests/engines/test_flink.py $(FLAGS)

.PHONY: test-tpu
test-tpu: tpu-compiler ## the train step compiled for slices of TPU v4, v5e and v6e
	@$(RUN) pytest -q -rs tests/trainer/test_tpu_check.py $(FLAGS)

.PHONY: lint
lint: venv ## ruff and mypy
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

.PHONY: bench-quantize
bench-quantize: venv ## IMAGES=folder: the quantizer against its peers
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[bench]'
	@$(if $(IMAGES),,$(error give IMAGES=folder of JPEGs))$(RUN) benchmarks.quantize --images=$(IMAGES) $(FLAGS)

.PHONY: bench-read-ahead
bench-read-ahead: engines ## IMAGES=folder: pictures a second from gs:// with latency against a local disk
	@$(if $(IMAGES),,$(error give IMAGES=folder of JPEGs))$(RUN) benchmarks.read_ahead --images=$(IMAGES) $(FLAGS)

.PHONY: bench-input
bench-input: venv ## DATA=pictures [ORIGINALS=JPEGs]: from shard to batch, against other loaders
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[bench]'
	@$(if $(DATA),,$(error give DATA=folder of pictures))$(RUN) benchmarks.input --images=$(DATA) \
		--work=$(WORK)/bench-input $(call flag,ORIGINALS,originals) $(FLAGS)

.PHONY: bench-train
bench-train: venv ## DATA=shards: the trainer fed from shards against the same step fed from memory
	@$(RUN) benchmarks.train --data_dir=$(or $(DATA),$(WORK)/shards) $(FLAGS)

.PHONY: bench-preprocess
bench-preprocess: venv ## IMAGES=folder: the local job against the sum of its parts, workers, memory
	@$(if $(IMAGES),,$(error give IMAGES=folder of JPEGs))$(RUN) benchmarks.preprocess --images=$(IMAGES) $(FLAGS)

.PHONY: bench-decode
bench-decode: venv ## IMAGES=folder: JPEG's scaled decoding, what it saves and costs
	@$(if $(IMAGES),,$(error give IMAGES=folder of JPEGs))$(RUN) benchmarks.decode --images=$(IMAGES) $(FLAGS)

.PHONY: bench-scale
bench-scale: venv ## a million and ten million paths through all that handles each of them
	@$(RUN) benchmarks.scale $(FLAGS)

.PHONY: bench-stored-size
bench-stored-size: venv ## IMAGES=folder: error at the size the network sees, over the stored size
	@$(if $(IMAGES),,$(error give IMAGES=folder of JPEGs))$(RUN) benchmarks.stored_size --images=$(IMAGES) $(FLAGS)

.PHONY: accuracy
accuracy: venv ## IMAGES=folder [SEEDS=2]: the recipe `scratch` on 32 colours; continues where it was
	@$(if $(IMAGES),,$(error give IMAGES=folder of pictures))$(RUN) benchmarks.colors --images=$(IMAGES) --work=$(WORK)/colors \
		--colors 32 --seeds=$(or $(SEEDS),2) $(FLAGS)

.PHONY: ablation
ablation: venv ## IMAGES=folder [SEEDS=2]: one recipe on 24-bit, 64, 32, 16 and 8 colours; continues
	@$(if $(IMAGES),,$(error give IMAGES=folder of pictures))$(RUN) benchmarks.colors --images=$(IMAGES) --work=$(WORK)/colors \
		--seeds=$(or $(SEEDS),2) $(FLAGS)
