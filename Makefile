.DEFAULT_GOAL := help
.PHONY: help run test lint bench build clean native testdeps generate

# What a Go build needs to find libvips; see internal/native/env.sh.
ENV := eval "$$(sh internal/native/env.sh)" &&

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /:/' | awk -F: '{printf "  %-10s %s\n", $$1, $$2}'

run: build ## build, start everything on this machine and print the address (Ctrl-C stops it)
	@exec build/bin/pixtools serve

build: native ## build build/bin/pixtools
	@$(ENV) go build -o build/bin/pixtools ./cmd/pixtools

native: ## fetch libvips and the page's scripts, by checksum, into build/
	@sh internal/native/install.sh

testdeps: ## install what the tests' real services need: Kafka, PostgreSQL, Redis, MinIO
	@sh internal/testenv/install.sh

test: native testdeps ## run all tests, with real Kafka, PostgreSQL, Redis and S3
	$(ENV) go vet ./...
	$(ENV) go run ./internal/testenv/with go test -count=1 -timeout 25m ./...

lint: native ## run the linters
	$(ENV) go vet ./...
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); exit 1; }

bench: build ## measure jobs a second, CPU a job, and times, in embedded mode
	$(ENV) go run ./bench/load

generate: native ## write events/*.pb.go and schemas/openapi.json anew
	cd schemas && PATH="$(CURDIR)/build/npm/node_modules/.bin:$(CURDIR)/build/tools:$$PATH" buf generate
	cd schemas && "$(CURDIR)/build/npm/node_modules/.bin/buf" build -o descriptors.binpb

clean: ## remove what was built; data/ stays
	rm -rf build web/vendor
