#!/bin/sh
# Installs what the tests' real services need, once. Idempotent: each function
# returns at once when its service can already run, so `make test` may call this
# every time.
#
#   sh internal/testenv/install.sh            everything
#   sh internal/testenv/install.sh kafka      only the services named
#
# One function per service, called install_NAME; SERVICES lists them. A function
# needs root only where a Debian package is missing, and then says which.
set -eu

SERVICES="kafka kafkatools postgres redis minio python boto3 schemathesis java chromium"
cd "$(dirname "$0")/../.."
BUILD="$PWD/build/testenv"

# apt_install NAME...: Debian packages, or a message that says what to install.
apt_install() {
	if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
		echo "testenv: install these packages and run again: $*" >&2
		return 1
	fi
	# Other parts of one `make` may hold apt's lock for a while: wait, do not fail.
	DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 update -q >&2
	DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 \
		install -yq --no-install-recommends "$@" >&2
}

# ---- kafka: Apache Kafka's own jars, from the pom committed beside this script.
# The stamp carries the pom's hash, so that a changed version is fetched anew.
install_kafka() {
	pom=internal/testenv/kafka/pom.xml
	libs="$BUILD/kafka/libs"
	want="$(cksum <"$pom")"
	if [ -f "$libs/.stamp" ] && [ "$(cat "$libs/.stamp")" = "$want" ] && command -v java >/dev/null; then
		return 0
	fi
	missing=""
	command -v java >/dev/null || missing="$missing default-jdk-headless"
	command -v mvn >/dev/null || missing="$missing maven"
	# shellcheck disable=SC2086 # a list of words
	[ -z "$missing" ] || apt_install $missing
	# Fetched beside and renamed: a run cut short never leaves half a folder with a stamp.
	mkdir -p "$BUILD/kafka"
	fresh="$(mktemp -d "$BUILD/kafka/libs.XXXXXX")"
	mvn -B -q -f "$pom" dependency:copy-dependencies -DincludeScope=runtime \
		-DoutputDirectory="$fresh" -Dmdep.overWriteReleases=true >&2
	printf '%s\n' "$want" >"$fresh/.stamp"
	rm -rf "$libs"
	mv "$fresh" "$libs"
}

# ---- kafkatools: the commands behind kafka-acls.sh, which the broker's own jars lack; of
# the broker's version. What they need beside, the broker's jars have.
KAFKA_TOOLS=org.apache.kafka:kafka-tools:4.4.0
install_kafkatools() {
	install_kafka
	stamp="$BUILD/kafka-tools/.stamp"
	if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$KAFKA_TOOLS" ]; then
		return 0
	fi
	command -v mvn >/dev/null || apt_install maven
	rm -rf "$BUILD/kafka-tools"
	mkdir -p "$BUILD/kafka-tools"
	mvn -B -q -C org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy \
		-Dartifact="$KAFKA_TOOLS" -DoutputDirectory="$BUILD/kafka-tools" >&2
	printf '%s\n' "$KAFKA_TOOLS" >"$stamp"
}

# apt_install_idle NAME...: Debian starts a server that it installs. Tests start their
# own, so for the time of the installation it is told not to.
apt_install_idle() {
	policy=/usr/sbin/policy-rc.d
	if [ -e "$policy" ] || [ "$(id -u)" != 0 ]; then
		apt_install "$@"
		return
	fi
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod +x "$policy"
	if apt_install "$@"; then
		rm -f "$policy"
	else
		rm -f "$policy"
		return 1
	fi
}

# ---- postgres: the server programs; the cluster that the package makes stays unused.
install_postgres() {
	command -v initdb >/dev/null || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 ||
		apt_install_idle postgresql
}

# ---- redis
install_redis() {
	command -v redis-server >/dev/null || apt_install_idle redis-server
}

# ---- minio: built from its Go module; no binaries of it are in the registries. It has
# no semantic versions, hence the commit. Takes minutes, once.
MINIO_VERSION=v0.0.0-20260212201848-7aac2a2c5b7c
install_minio() {
	stamp="$BUILD/bin/minio.version"
	if [ -x "$BUILD/bin/minio" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$MINIO_VERSION" ]; then
		return 0
	fi
	mkdir -p "$BUILD/bin"
	# Outside the module, whose go.mod must not decide about MinIO's dependencies.
	(cd / && GOBIN="$BUILD/bin" GOFLAGS=-mod=mod nice -n 2 go install "github.com/minio/minio@$MINIO_VERSION") >&2
	printf '%s\n' "$MINIO_VERSION" >"$stamp"
}

# ---- python: Kafka and protobuf clients that are not ours, in an environment of its own.
install_python() {
	PYTHON_PACKAGES="$(paste -sd ' ' docs/consumers/python/requirements.txt)"
	stamp="$BUILD/python/.stamp"
	if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$PYTHON_PACKAGES" ]; then
		return 0
	fi
	python3 -c 'import venv, ensurepip' 2>/dev/null || apt_install python3 python3-venv
	rm -rf "$BUILD/python"
	python3 -m venv "$BUILD/python"
	# shellcheck disable=SC2086 # a list of words
	"$BUILD/python/bin/pip" install -q --disable-pip-version-check $PYTHON_PACKAGES >&2
	printf '%s\n' "$PYTHON_PACKAGES" >"$stamp"
}

# ---- boto3: an S3 client that is not ours, in an environment of its own.
BOTO3="boto3==1.44.8 botocore==1.44.8"
install_boto3() {
	stamp="$BUILD/boto3/.stamp"
	if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$BOTO3" ]; then
		return 0
	fi
	python3 -c 'import venv, ensurepip' 2>/dev/null || apt_install python3 python3-venv
	rm -rf "$BUILD/boto3"
	python3 -m venv "$BUILD/boto3"
	# shellcheck disable=SC2086 # a list of words
	"$BUILD/boto3/bin/pip" install -q --disable-pip-version-check $BOTO3 >&2
	printf '%s\n' "$BOTO3" >"$stamp"
}

# ---- schemathesis: sends what the OpenAPI document allows, and what it does not.
SCHEMATHESIS=4.32.5
install_schemathesis() {
	stamp="$BUILD/schemathesis/.stamp"
	if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$SCHEMATHESIS" ]; then
		return 0
	fi
	python3 -c 'import venv, ensurepip' 2>/dev/null || apt_install python3 python3-venv
	rm -rf "$BUILD/schemathesis"
	python3 -m venv "$BUILD/schemathesis"
	"$BUILD/schemathesis/bin/pip" install -q --disable-pip-version-check "schemathesis==$SCHEMATHESIS" >&2
	printf '%s\n' "$SCHEMATHESIS" >"$stamp"
}

# ---- java: the example consumer, built as its users build it. The stamp carries the hash
# of what it is made of.
install_java() {
	want="$(find docs/consumers/java/pom.xml docs/consumers/java/src schemas/pixtools/events -type f | LC_ALL=C sort | xargs cksum)"
	built="$BUILD/java"
	if [ -f "$built/.stamp" ] && [ "$(cat "$built/.stamp")" = "$want" ] && command -v java >/dev/null; then
		return 0
	fi
	missing=""
	command -v javac >/dev/null || missing="$missing default-jdk-headless"
	command -v mvn >/dev/null || missing="$missing maven"
	# shellcheck disable=SC2086 # a list of words
	[ -z "$missing" ] || apt_install $missing
	fresh="$(mktemp -d "$BUILD/java.XXXXXX")"
	mvn -B -q -C -f docs/consumers/java/pom.xml package -Doutput="$fresh" >&2
	printf '%s\n' "$want" >"$fresh/.stamp"
	rm -rf "$built"
	mv "$fresh" "$built"
}

# ---- chromium: the browser that the page is tested in.
install_chromium() {
	command -v chromium >/dev/null || apt_install chromium
}

[ $# -gt 0 ] || set -- $SERVICES
for service in "$@"; do
	"install_$service"
done
