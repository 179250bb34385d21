#pragma once

#include "ggml.h"

namespace medusa {

struct Workspace;

// SET_ROWS: new cells of a KV cache, converted to its type as the CPU's own backend does. Takes
// note of the order in which cells are written.
bool supports_set_rows(const ggml_tensor * node);
void set_rows(ggml_tensor * node, Workspace & workspace);

}  // namespace medusa
