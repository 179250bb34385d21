#pragma once

#include <cstddef>

namespace medusa {

// Let go of a file's pages that were read through a mapping; the file's cache keeps them. Does
// nothing to other memory.
void release_mapped(const void * data, size_t size);

}  // namespace medusa
