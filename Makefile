.DEFAULT_GOAL := help
.PHONY: help run test lint screenshots bench bench-replay faults faults-bugs build clean native testdeps schemas generate model-import

# What a Go build needs to find libvips; see internal/native/env.sh.
ENV := eval "$$(sh internal/native/env.sh)" &&

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: build ## build, start everything on this machine and print the address (Ctrl-C stops it)
	@exec build/bin/pixtools serve

build: native ## build build/bin/pixtools
	@echo 'compiling build/bin/pixtools: minutes the first time, seconds after that' >&2
	@$(ENV) go build -o build/bin/pixtools ./cmd/pixtools

native: ## fetch libvips, ONNX Runtime and the page's scripts, by checksum, into build/
	@sh internal/native/install.sh

testdeps: ## install what the tests' real services need: Kafka, PostgreSQL, Redis, MinIO, Chromium
	@sh internal/testenv/install.sh

test: native testdeps schemas ## run all tests, with real Kafka, PostgreSQL, Redis, S3 and a browser
	@$(ENV) go vet ./...
	@$(ENV) go run ./internal/testenv/with go test -count=1 -timeout 45m ./...

schemas: native ## check the public contract: buf lint and breaking, AsyncAPI, OpenAPI, nothing stale
	@sh schemas/check.sh
	@sh schemas/gate_test.sh

lint: native schemas ## run the linters, check the public contract and what PixTools is deployed with
	@sh internal/deploy/check.sh
	@sh internal/deploy/check_test.sh
	@sh internal/lint/install.sh go
	@$(ENV) build/tools/golangci-lint run ./...

bench: build ## measure jobs a second, CPU a job, times; the page; a rebuild; denoising beside its peers (PyTorch: 7 GB, once; PEERS=0 without)
	@$(ENV) go run ./bench/load
	@sh internal/testenv/install.sh chromium
	@$(ENV) go run ./bench/ui
	@$(ENV) go run ./bench/replay -broker=embedded -events=$(or $(EVENTS),1000000)
	@[ "$(PEERS)" = 0 ] || models/training/venv.sh >/dev/null
	@$(ENV) go run ./bench/denoise -peers=$(if $(filter 0,$(PEERS)),false,true)

# What make faults may be told, beside SCENARIO, KILLS and SEED, goes into FAULTS.
faults: native testdeps ## kill, stop and change everything under load, and judge what is left (SCENARIO=all KILLS=300 SEED=...)
	@$(ENV) go run ./bench/faults $(if $(SCENARIO),-scenario=$(SCENARIO)) $(if $(KILLS),-kills=$(KILLS)) $(if $(SEED),-seed=$(SEED)) $(FAULTS)

faults-bugs: native testdeps ## make deliberate bugs, to show that the judge finds each of them (SEED=...)
	@$(ENV) go run ./bench/faults -scenario=bugs $(if $(SEED),-seed=$(SEED)) $(FAULTS)
bench-replay: build ## measure a rebuild of the read model: EVENTS=10000000 long a log, BROKER=embedded for that broker
	@$(ENV) go run ./bench/replay -events=$(or $(EVENTS),10000000) -broker=$(or $(BROKER),kafka)

screenshots: build ## make the pictures of the page in docs/images, which the README shows
	@sh internal/testenv/install.sh chromium
	@$(ENV) go run ./web/screenshots

generate: native ## write events/*.pb.go, schemas/descriptors.binpb, schemas/openapi.json, docs/configuration.md and .env.example anew
	@sh schemas/generate.sh

model-import: ## make a DENOISE_MODEL of a KAIR/DnCNN state dict: make model-import WEIGHTS=dncnn_color_blind.pth
	@models/import.sh "$(WEIGHTS)"

clean: ## remove what was built; data/ and the training's build/training stay
	@rm -rf web/vendor
	@if [ -d build ]; then find build -mindepth 1 -maxdepth 1 ! -name training -exec rm -rf {} +; fi
