# Every target works on a fresh clone: the environment is made first where it is not there or the lock changed.
#   make train CONFIG=configs/dsb2018.yaml SET="train.steps=100 seed=7"
CONFIG  ?= configs/sample.yaml
SET     ?=
APPLY   ?=
DATASET ?= dsb2018
METHOD  ?= unet
FROM    ?=
PYTHON  ?= python3
VENV    := .venv
READY   := $(VENV)/.ready
PIPELINE := $(VENV)/bin/python -m pipeline
STAGES  := ingest split normalise augment predict report
export NO_ALBUMENTATIONS_UPDATE := 1

.PHONY: help train evaluate submission submit cv compare transfer normaliser restorer ablation peers data kaggle-submit kaggle-notebook bench bench-peers test check lock environment $(STAGES)
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'
	@echo '  make <stage>        one stage alone: ingest split normalise augment train predict evaluate report submit'
	@echo
	@echo '  CONFIG=configs/X.yaml   settings (default $(CONFIG))'
	@echo '  SET="key.path=value"    settings laid over the file'
	@echo '  METHOD=<name>           of make normaliser: $(CLASSICAL); $(NORMALISERS)'
	@echo '                          of make restorer: $(RESTORERS)'
	@echo '  APPLY="key.path=value"  of make normaliser: settings of the step that applies it; SET are those of its training'

train: $(READY)  ## everything up to a trained model
	@$(PIPELINE) train -c $(CONFIG) --with-needs $(SET)

evaluate: $(READY)  ## scores, masks and the report, and all that they need
	@$(PIPELINE) report -c $(CONFIG) --with-needs $(SET)

submission: $(READY)  ## the competition's file, and all that it needs
	@$(PIPELINE) submit -c $(CONFIG) --with-needs $(SET)

submit: $(READY)
	@$(PIPELINE) submit -c $(CONFIG) $(SET)

$(STAGES): $(READY)
	@$(PIPELINE) $@ -c $(CONFIG) $(SET)

# A learned method is trained and judged from its own config, then applied to CONFIG's images as a classical one is.
CLASSICAL   := reinhard macenko vahadane ruifrok
NORMALISERS := $(sort $(basename $(notdir $(wildcard configs/normalisers/*.yaml))))
RESTORERS   := $(sort $(basename $(notdir $(wildcard configs/restorers/*.yaml))))
NORMALISER  := $(METHOD:normalisers/%=%)
RESTORER    := $(METHOD:restorers/%=%)
# Before anything is made, so that a misspelt name waits for no environment.
ifneq ($(filter normaliser,$(MAKECMDGOALS)),)
ifeq ($(filter $(CLASSICAL) $(NORMALISERS),$(NORMALISER)),)
$(error METHOD=$(METHOD): expected one of $(CLASSICAL), or learned: $(NORMALISERS) (configs/normalisers/)$(if \
  $(filter $(RESTORERS),$(RESTORER)),; that one is a restorer: make restorer METHOD=$(RESTORER)))
endif
endif
ifneq ($(filter restorer,$(MAKECMDGOALS)),)
ifeq ($(filter $(RESTORERS),$(RESTORER)),)
$(error make restorer: expected METHOD=<one of $(RESTORERS)> (configs/restorers/), found $(if \
  $(filter file,$(origin METHOD)),none,METHOD=$(METHOD)))
endif
endif
ifneq ($(filter compare,$(MAKECMDGOALS)),)
ifeq ($(and $(A),$(B)),)
$(error make compare: expected A=<run> B=<run>, each with reports/<run>/per_case.csv, found A=$(A) B=$(B))
endif
endif
ifneq ($(filter transfer,$(MAKECMDGOALS)),)
ifeq ($(RUN),)
$(error make transfer: expected RUN=<a trained segmentation below data/train/> and CONFIG=<of the other data set>, found no RUN)
endif
endif

normaliser: $(READY)  ## a stain normaliser, trained where it is learned, applied to CONFIG's images (METHOD=macenko)
ifneq ($(filter $(NORMALISERS),$(NORMALISER)),)
	@$(PIPELINE) report -c configs/normalisers/$(NORMALISER).yaml --with-needs $(SET)
	@$(PIPELINE) normalise -c $(CONFIG) --with-needs normalise.method=learned normalise.run=normalisers/$(NORMALISER) $(APPLY)
else
	@$(PIPELINE) normalise -c $(CONFIG) --with-needs normalise.method=$(NORMALISER) $(SET) $(APPLY)
endif

restorer: $(READY)  ## a network that takes noise, holes or writing away, trained and judged (METHOD=denoise)
	@$(PIPELINE) report -c configs/restorers/$(RESTORER).yaml --with-needs $(SET)

cv: $(READY)  ## cross-validation: one run a fold, every image scored by the run that never saw it
	@$(PIPELINE) cv -c $(CONFIG) $(SET)

compare: $(READY)  ## two runs on the same cases: paired differences with intervals (A=<run> B=<run> POOL="name=stratum,stratum")
	@$(PIPELINE) compare "$(A)" "$(B)" $(if $(POOL),--pool "$(POOL)")

transfer: $(READY)  ## a trained run on another data set, without and with each stain normaliser (RUN=dsb2018 CONFIG=configs/nuinsseg_human.yaml)
	@$(PIPELINE) transfer --run "$(RUN)" -c $(CONFIG) $(if $(METHODS),--methods "$(METHODS)") $(if $(STRATA),--reference-strata "$(STRATA)") $(SET)

ablation: $(READY)  ## does it help? one segmenter without and with each remedy (STUDY=sample FILE=configs/studies/ablation.yaml)
	@$(PIPELINE) ablation $(STUDY)$(if $(FILE), --file $(FILE))

peers: $(READY)  ## other libraries' segmenters on the same images, beside ours (CONFIG=..., MINUTES=45 ONLY=stardist,cellpose)
	@$(PIPELINE) peers -c $(CONFIG)$(if $(MINUTES), --minutes $(MINUTES))$(if $(ONLY), --only "$(ONLY)") $(SET)

data: $(READY)  ## a competition's files into data/raw/ (DATASET=dsb2018, FROM=<folder>)
	@$(PIPELINE) data $(DATASET) $(if $(FROM),--from "$(FROM)")

kaggle-submit: $(READY)  ## hand in the submission with Kaggle's client
	@$(PIPELINE) kaggle-submit -c $(CONFIG) $(SET)

kaggle-notebook: $(READY)  ## a trained run as a notebook without network, for code competitions (OWNER=<name on Kaggle> WHEELS=all IMAGE=<pip freeze> KAGGLE_PYTHON=3.12)
	@$(PIPELINE) kaggle-notebook -c $(CONFIG)$(if $(OWNER), --owner "$(OWNER)")$(if $(WHEELS), --wheels $(WHEELS))$(if $(IMAGE), --image "$(IMAGE)")$(if $(KAGGLE_PYTHON), --python $(KAGGLE_PYTHON)) $(SET)

bench: $(READY)  ## speed against other libraries, as ratios (SUITE=stains, training, inference, ...)
	@$(PIPELINE) bench $(SUITE)

bench-peers: $(READY)  ## the other libraries of `make bench` and `make peers`, each in an environment of its own
	@$(PIPELINE) bench --install-peers

test: $(READY)  ## the whole test suite, on up to four cores
	@$(VENV)/bin/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

check: $(READY)  ## format, lint and types
	@$(VENV)/bin/ruff format --check pipeline tests
	@$(VENV)/bin/ruff check pipeline tests
	@$(VENV)/bin/mypy

environment: $(READY)  ## only the environment

$(READY): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "stainseg needs Python 3.11 or newer; name one with PYTHON=..."; exit 1; }
	@echo "Installing the environment into $(VENV) (once; some minutes) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@touch $(READY)

lock:  ## renew requirements.lock (needs uv)
	uv pip compile --quiet --universal --generate-hashes --no-strip-extras --no-emit-index-url --custom-compile-command 'make lock' --python-version 3.11 -c constraints.txt --extra dev --extra kaggle pyproject.toml -o requirements.lock
