#!/bin/sh
# Prints the environment that a Go build of this checkout needs:
#
#	eval "$(sh internal/native/env.sh)"
#
# govips asks pkg-config for libvips. Go's build cache knows the CGO_ variables, and not
# what pkg-config says: two checkouts, or two versions, would then share objects. So
# pkg-config is replaced by a program that says nothing, and all is said here. The
# definition is there for its value alone: another lock file makes other objects.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
lock=$(cksum <"$root/internal/native/package-lock.json" | cut -d' ' -f1)
case $(uname -s) in
	Darwin) origin='-Wl,-rpath,@loader_path/lib' unused='-Wl,-dead_strip_dylibs' ;;
	*) origin='-Wl,-rpath,$ORIGIN/lib' unused='-Wl,--as-needed' ;;
esac
# The first rpath is for an installed binary, the second for test binaries, which Go
# builds and runs somewhere in /tmp.
cat <<END
export CGO_ENABLED=1
export PKG_CONFIG=true
export CGO_CFLAGS='-O2 -g -DPIXTOOLS_NATIVE_LOCK=$lock "-I$root/build/native/include" "-I$root/build/native/include/glib-2.0"'
export CGO_LDFLAGS='-O2 -g "-L$root/build/bin/lib" "-L$root/build/native/lib" $origin "-Wl,-rpath,$root/build/bin/lib" $unused -lvips-cpp -labsent'
END
