#pragma once

#include "packing.h"

#include "ggml-backend.h"

namespace medusa {

// Memory for weights that the kernels multiply: what llama.cpp writes into it is packed. To be
// named in llama_model_params.tensor_buft_overrides.
ggml_backend_buffer_type_t packed_buffer_type();

bool can_pack(ggml_type type, int64_t num_values, int64_t num_rows, int64_t num_matrices);

// Whether a tensor is a stack of matrices in such memory, or a view of the first ones of it.
bool is_packed(const ggml_tensor * tensor);

// A group of sixteen rows. They are counted through all matrices, each of which begins a new one.
const uint8_t * packed_group(const ggml_tensor * tensor, int64_t group);

// One row as the file has it.
void unpack_row(const ggml_tensor * tensor, int64_t row, uint8_t * out);

}  // namespace medusa
