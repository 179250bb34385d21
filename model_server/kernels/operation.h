#pragma once

#include "ggml.h"

namespace medusa {

struct Workspace;

// One of ggml's operations that the kernels can compute, in the shapes and types that
// `supports` accepts.
struct Operation {
    ggml_op op;
    bool (*supports)(const ggml_tensor * node);
    void (*compute)(ggml_tensor * node, Workspace & workspace);
};

}  // namespace medusa
