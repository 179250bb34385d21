#!/bin/sh
# While an image is built: llama.cpp's libraries into /llama, and the Python package without them as a
# wheel into /wheels.
# Usage: build-llama.sh PIN_FILE [CMAKE_OPTION...]
set -eu

pin=$1
shift
mkdir -p /llama /wheels /tmp/llama.cpp
cd /tmp/llama.cpp
pip download --no-cache-dir --no-deps --no-binary llama-cpp-python --requirement "$pin"
CMAKE_ARGS="-DLLAMA_BUILD=OFF -DLLAVA_BUILD=OFF" \
    pip wheel --no-cache-dir --no-deps --wheel-dir /wheels ./*.tar.gz
tar --extract --strip-components=1 --file ./*.tar.gz

# Kernels for many kinds of CPU (or ARM's), each a library of its own that is chosen at start.
cmake -G Ninja -S vendor/llama.cpp -B build -DCMAKE_BUILD_TYPE=Release \
    -DBUILD_SHARED_LIBS=ON -DCMAKE_BUILD_RPATH_USE_ORIGIN=ON \
    -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS=OFF \
    -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF \
    -DGGML_NATIVE=OFF -DGGML_BACKEND_DL=ON -DGGML_CPU_ALL_VARIANTS=ON "$@"
cmake --build build --target llama
cp -P build/bin/lib*.so* /llama/
