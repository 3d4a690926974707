#!/bin/sh
# Puts the prebuilt files of package-lock.json where the build looks for them:
#
#   build/bin/lib/                 libvips, beside the binary (its rpath is $ORIGIN/lib)
#   build/native/include/          libvips' and glib's headers
#   build/native/lib/              what govips links to and that libvips lacks
#   build/npm/node_modules/.bin/   buf
#   web/vendor/scalar.js           the API page's script
#
# It needs node and npm, no root, and runs no package's own scripts. What it did is
# noted by a copy of the lock file; while that is the same, it does nothing. That copy
# is written last, so a run that was cut off is done again from the start.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
here=$root/internal/native
build=$root/build
stamp=$build/native/installed-lock.json

if cmp -s "$here/package-lock.json" "$stamp" && [ -f "$root/web/vendor/scalar.js" ] && [ -f "$build/native/lib/libabsent.a" ]; then
	exit 0
fi

for tool in node npm; do
	command -v "$tool" >/dev/null || {
		echo "internal/native/install.sh: $tool is not on the PATH; install Node.js 20 or later" >&2
		exit 1
	}
done

case $(uname -s)-$(uname -m) in
	Linux-x86_64) platform=linux-x64 ;;
	Linux-aarch64) platform=linux-arm64 ;;
	Darwin-arm64) platform=darwin-arm64 ;;
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

# The linker looks for libvips-cpp.so (or .dylib); what it then writes into the binary
# is the name with the version, so an old binary never runs with a new library.
rm -f "$build"/bin/lib/libvips-cpp.*
for file in "$library"/lib/libvips-cpp.*; do
	name=$(basename "$file")
	# A new file, moved into place: a process that has the old one mapped keeps it.
	cp "$file" "$build/bin/lib/.$name" && mv "$build/bin/lib/.$name" "$build/bin/lib/$name"
	case $name in
		*.dylib) ln -sf "$name" "$build/bin/lib/libvips-cpp.dylib" ;;
		*) ln -sf "$name" "$build/bin/lib/libvips-cpp.so" ;;
	esac
done

# govips knows a loader that this libvips is built without.
mkdir -p "$build/native/lib"
printf 'int vips_magickload_buffer(void *buf, unsigned long len, void **out, ...) { return -1; }\n' >"$build/native/lib/absent.c"
"${CC:-cc}" -O2 -fPIC -c "$build/native/lib/absent.c" -o "$build/native/lib/absent.o"
rm -f "$build/native/lib/libabsent.a"
"${AR:-ar}" rcs "$build/native/lib/libabsent.a" "$build/native/lib/absent.o"

cp "$packages/@scalar/api-reference/dist/browser/standalone.js" "$root/web/vendor/scalar.js"
cp "$here/package-lock.json" "$stamp"
