#!/bin/sh
# Makes of llama-cpp-python's source, as pinned, FOLDER/lib with llama.cpp's libraries and FOLDER/wheels
# with the Python package without them. CMAKE_ARGS are cmake's options. What lies in SOURCES from
# before is not fetched again, and what lies in FOLDER is compiled again only where it has to be.
# PYTHON is the interpreter, with pip.
# Usage: build-llama.sh PIN_FILE SOURCES FOLDER
set -eu

python=${PYTHON:-python3}

pin=$(grep '^llama-cpp-python==' "$1")
mkdir -p "$2" "$3"
sources=$(cd "$2" && pwd)
folder=$(cd "$3" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
name=llama_cpp_python-${pin##*==}
source=$sources/$name

# Has pip make a folder, the last argument of its command: whole or not at all, as disks get full.
# Of llama-cpp-python only what is Python.
pip_makes() { # pip_makes FOLDER ARGUMENT...
    made=$1
    shift
    rm -rf "$made" "$made.part"
    CMAKE_ARGS="-DLLAMA_BUILD=OFF -DLLAVA_BUILD=OFF" "$python" -m pip "$@" "$made.part"
    mv "$made.part" "$made"
}

if [ ! -e "$source.tar.gz" ]; then
    "$python" -m pip download --no-deps --no-binary llama-cpp-python --dest "$source.part" "$pin"
    mv "$source.part/$name.tar.gz" "$sources"
    rmdir "$source.part"
fi
if [ ! -e "$source" ]; then
    mkdir -p "$source.part"
    tar -xf "$source.tar.gz" --strip-components=1 -C "$source.part"
    mv "$source.part" "$source"
fi

if ! ls "$folder/wheels/$name"-*.whl >/dev/null 2>&1; then
    pip_makes "$folder/wheels" wheel --no-deps "$source" --wheel-dir
fi

if ! command -v ninja >/dev/null; then
    [ -e "$folder/ninja/bin/ninja" ] || pip_makes "$folder/ninja" install ninja --target
    PATH=$folder/ninja/bin:$PATH
fi
if ! command -v cmake >/dev/null; then
    [ -e "$folder/cmake/cmake" ] || pip_makes "$folder/cmake" install cmake --target
    PATH=$folder/cmake/cmake/data/bin:$PATH
fi
# Options of an earlier build must not stay, nor the libraries that only they make: all that lie
# together are loaded. xargs takes the words apart as a shell would.
rm -rf "$folder/build/CMakeCache.txt" "$folder/build/bin"
echo "-DCMAKE_BUILD_TYPE=Release ${CMAKE_ARGS:-}" |
    xargs cmake -G Ninja -S "$here" -B "$folder/build" "-DLLAMA_CPP=$source/vendor/llama.cpp"
# As many at a time as CMAKE_BUILD_PARALLEL_LEVEL says, or as ninja sees processors for itself.
cmake --build "$folder/build" --target libraries
rm -rf "${folder:?}/lib"
mkdir "$folder/lib"
cp -P "$folder"/build/bin/lib* "$folder/lib"
