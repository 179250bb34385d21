#pragma once

#include "ggml.h"

namespace medusa {

struct Workspace;

// FLASH_ATTN_EXT: softmax(scale * q k^T + mask) v. A row's result doesn't depend on the rows beside
// it, on where its cells lie, or on the number of threads.
bool supports_attention(const ggml_tensor * node);
void attention(ggml_tensor * node, Workspace & workspace);

}  // namespace medusa
