#!/bin/sh
# Puts the prebuilt files of package-lock.json where the build looks for them:
#
#   build/bin/lib/                 libvips and ONNX Runtime, beside the binary (its rpath is $ORIGIN/lib)
#   build/native/include/          libvips' and glib's headers
#   build/native/lib/              what govips links to and that libvips lacks
#   build/npm/node_modules/.bin/   buf
#   web/vendor/                    the browser's libraries: scalar.js for the API page; uPlot.js, uPlot.css, client-zip.js
#   build/npm/node_modules/axe-core/   what the page's tests check accessibility with
#
# It needs node and npm, no root, and runs no package's own scripts. What it did is
# noted by a copy of the lock file; while that is the same, it does nothing. That copy
# is written last, so a run that was cut off is done again from the start.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
here=$root/internal/native
build=$root/build
stamp=$build/native/installed-lock.json

if cmp -s "$here/package-lock.json" "$stamp" && [ -f "$root/web/vendor/scalar.js" ] && [ -f "$root/web/vendor/uPlot.js" ] && [ -f "$build/native/lib/libabsent.a" ] &&
	ls "$build"/bin/lib/libonnxruntime.* >/dev/null 2>&1; then
	exit 0
fi

for tool in node npm; do
	command -v "$tool" >/dev/null || {
		echo "internal/native/install.sh: $tool is not on the PATH; install Node.js 20 or later" >&2
		exit 1
	}
done

case $(uname -s)-$(uname -m) in
	Linux-x86_64) platform=linux-x64 onnxruntime=linux/x64/libonnxruntime.so.1 ;;
	Linux-aarch64) platform=linux-arm64 onnxruntime=linux/arm64/libonnxruntime.so.1 ;;
	Darwin-arm64) platform=darwin-arm64 onnxruntime=darwin/arm64/libonnxruntime.1.dylib ;;
	*)
		echo "internal/native/install.sh: no prebuilt libvips for $(uname -s) on $(uname -m);" \
			"there is one for Linux (glibc) on x86_64 and aarch64 and for macOS on arm64" >&2
		exit 1
		;;
esac

rm -f "$stamp"
mkdir -p "$build/npm" "$build/native" "$build/bin/lib" "$root/web/vendor"
cp "$here/package.json" "$here/package-lock.json" "$build/npm/"
(cd "$build/npm" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)

packages=$build/npm/node_modules
library=$packages/@img/sharp-libvips-$platform
if [ ! -d "$library" ]; then
	echo "internal/native/install.sh: npm left out @img/sharp-libvips-$platform;" \
		"it is made for glibc, so on musl (Alpine) use a Debian image" >&2
	exit 1
fi

rm -rf "$build/native/include"
cp -R "$packages/@img/sharp-libvips-dev/include" "$build/native/include"
cp "$library/lib/glib-2.0/include/glibconfig.h" "$build/native/include/"

# place moves a new file into build/bin/lib: a process that has the old one mapped keeps
# it, and a build that runs meanwhile always finds one.
place() {
	cp "$1" "$build/bin/lib/.$(basename "$1")" && mv "$build/bin/lib/.$(basename "$1")" "$build/bin/lib/$(basename "$1")"
}

# The linker looks for libvips-cpp.so (or .dylib); what it then writes into the binary
# is the name with the version, so an old binary never runs with a new library.
for file in "$library"/lib/libvips-cpp.*; do
	place "$file"
	vips=$(basename "$file")
done
case $vips in
	*.dylib) link=libvips-cpp.dylib ;;
	*) link=libvips-cpp.so ;;
esac
ln -sf "$vips" "$build/bin/lib/$link"

# The package brings every platform's library, 290 MB of them. The program opens the one
# by its name when it first needs it.
onnxruntime=$packages/onnxruntime-node/bin/napi-v6/$onnxruntime
place "$onnxruntime"
rm -rf "$packages/onnxruntime-node/bin"

# What another version left behind.
for file in "$build"/bin/lib/*; do
	case $(basename "$file") in
		"$vips" | "$link" | "$(basename "$onnxruntime")") ;;
		libvips-cpp.* | libonnxruntime.*) rm -f "$file" ;;
	esac
done

# govips knows a loader that this libvips is built without.
mkdir -p "$build/native/lib"
printf 'int vips_magickload_buffer(void *buf, unsigned long len, void **out, ...) { return -1; }\n' >"$build/native/lib/absent.c"
"${CC:-cc}" -O2 -fPIC -c "$build/native/lib/absent.c" -o "$build/native/lib/absent.o"
rm -f "$build/native/lib/libabsent.a"
"${AR:-ar}" rcs "$build/native/lib/libabsent.a" "$build/native/lib/absent.o"

cp "$packages/@scalar/api-reference/dist/browser/standalone.js" "$root/web/vendor/scalar.js"
cp "$packages/client-zip/index.js" "$root/web/vendor/client-zip.js"
cp "$packages/uplot/dist/uPlot.min.css" "$root/web/vendor/uPlot.css"
cp "$packages/uplot/dist/uPlot.esm.js" "$root/web/vendor/uPlot.js"
cp "$here/package-lock.json" "$stamp"
