#pragma once

#include "ggml.h"

namespace medusa {

struct Workspace;

// Products of packed weights and rows of floats.
bool supports_mul_mat(const ggml_tensor * node);
void mul_mat(ggml_tensor * node, Workspace & workspace);

// Rows of packed weights as floats: embeddings, where they share the output's matrix.
bool supports_get_rows(const ggml_tensor * node);
void get_rows(ggml_tensor * node, Workspace & workspace);

}  // namespace medusa
