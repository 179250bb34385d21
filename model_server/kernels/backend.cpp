// The library as ggml sees it: a registry with one device, which takes what the operations support
// and leaves the rest to the CPU's own backend. Its tensors lie in the CPU's memory.

#include "attention.h"
#include "cpu.h"
#include "matmul.h"
#include "operation.h"
#include "packed_buffer.h"
#include "set_rows.h"
#include "threads.h"
#include "workspace.h"

#include "ggml-backend-impl.h"

#include <atomic>
#include <cstdint>
#include <cstring>
#include <new>
#include <omp.h>

namespace medusa {
namespace {

constexpr Operation operations[] = {
    {GGML_OP_FLASH_ATTN_EXT, supports_attention, attention},
    {GGML_OP_SET_ROWS, supports_set_rows, set_rows},
    {GGML_OP_MUL_MAT, supports_mul_mat, mul_mat},
    {GGML_OP_GET_ROWS, supports_get_rows, get_rows},
};

std::atomic<uint64_t> num_computed[GGML_OP_COUNT];

// Stock kernels can compute attention, too: it is taken only where that was asked for.
std::atomic<bool> takes_attention{false};

bool is_left_alone(ggml_op op) {
    return !takes_attention && (op == GGML_OP_FLASH_ATTN_EXT || op == GGML_OP_SET_ROWS);
}

const Operation * find(ggml_op op) {
    for (const Operation & operation : operations) {
        if (operation.op == op) {
            return &operation;
        }
    }
    return nullptr;
}

bool is_view(ggml_op op) {
    return op == GGML_OP_NONE || op == GGML_OP_RESHAPE || op == GGML_OP_VIEW ||
           op == GGML_OP_PERMUTE || op == GGML_OP_TRANSPOSE;
}

// ---- backend: what a context computes with

struct Backend {
    ggml_backend base;
    Workspace workspace;
};

const char * name_of(ggml_backend_t) {
    return "MEDUSA";
}

void free_backend(ggml_backend_t backend) {
    delete static_cast<Backend *>(backend->context);
}

ggml_status compute(ggml_backend_t backend, ggml_cgraph * graph) {
    Workspace & workspace = static_cast<Backend *>(backend->context)->workspace;
    try {
        for (int i = 0; i < ggml_graph_n_nodes(graph); i++) {
            ggml_tensor * node = ggml_graph_node(graph, i);
            const bool is_wanted = node->flags & GGML_TENSOR_FLAG_COMPUTE;
            if (is_view(node->op) || ggml_is_empty(node) || !is_wanted) {
                continue;
            }
            const Operation * operation = find(node->op);
            GGML_ASSERT(operation && "This is a bug: the device doesn't support this operation");
            operation->compute(node, workspace);
            num_computed[node->op].fetch_add(1, std::memory_order_relaxed);
        }
    } catch (const std::bad_alloc &) {
        return GGML_STATUS_ALLOC_FAILED;
    }
    return GGML_STATUS_SUCCESS;
}

void set_num_threads(ggml_backend_t backend, int num_threads) {
    static_cast<Backend *>(backend->context)->workspace.num_threads = num_threads;
}

ggml_backend_t open_backend(ggml_backend_dev_t device, const char *) {
    static ggml_guid guid = {'m', 'e', 'd', 'u', 's', 'a', ' ', 'k', 'e', 'r', 'n', 'e', 'l', 's'};
    ggml_backend_i interface = {};
    interface.get_name = name_of;
    interface.free = free_backend;
    interface.graph_compute = compute;
    auto * backend = new Backend{{&guid, interface, device, nullptr}, {}};
    backend->workspace.num_threads = omp_get_max_threads();
    backend->base.context = backend;
    return &backend->base;
}

// ---- device

const char * device_name(ggml_backend_dev_t) {
    return "MEDUSA";
}

const char * device_description(ggml_backend_dev_t) {
    return cpu_name();
}

void device_memory(ggml_backend_dev_t, size_t * free, size_t * total) {
    *free = *total = 0;  // the CPU's, which it reports itself
}

enum ggml_backend_dev_type device_type(ggml_backend_dev_t) {
    return GGML_BACKEND_DEVICE_TYPE_ACCEL;
}

void device_properties(ggml_backend_dev_t device, ggml_backend_dev_props * properties) {
    *properties = {};
    properties->name = device_name(device);
    properties->description = device_description(device);
    properties->type = device_type(device);
}

// Any other default, and the scheduler would copy activations between this device and the CPU's.
ggml_backend_buffer_type_t buffer_type(ggml_backend_dev_t) {
    return ggml_backend_cpu_buffer_type();
}

bool supports(ggml_backend_dev_t, const ggml_tensor * node) {
    if (is_view(node->op)) {
        return true;
    }
    const Operation * operation = find(node->op);
    return operation && cpu().isa != Isa::none && !is_left_alone(node->op) &&
           operation->supports(node);
}

bool supports_buffers(ggml_backend_dev_t, ggml_backend_buffer_type_t type) {
    return type == packed_buffer_type() || ggml_backend_buft_is_host(type);
}

// ---- registry

const char * registry_name(ggml_backend_reg_t) {
    return "MEDUSA";
}

size_t num_devices(ggml_backend_reg_t) {
    return 1;
}

ggml_backend_dev_t the_device(ggml_backend_reg_t registry, size_t) {
    static ggml_backend_device device = [registry] {
        ggml_backend_device_i interface = {};
        interface.get_name = device_name;
        interface.get_description = device_description;
        interface.get_memory = device_memory;
        interface.get_type = device_type;
        interface.get_props = device_properties;
        interface.init_backend = open_backend;
        interface.get_buffer_type = buffer_type;
        interface.supports_op = supports;
        interface.supports_buft = supports_buffers;
        return ggml_backend_device{interface, registry, nullptr};
    }();
    return &device;
}

// How many nodes with this operation, such as "SET_ROWS", the library has computed.
uint64_t count(const char * name) {
    for (int op = 0; op < GGML_OP_COUNT; op++) {
        if (std::strcmp(ggml_op_name(ggml_op(op)), name) == 0) {
            return num_computed[op].load(std::memory_order_relaxed);
        }
    }
    return 0;
}

void take_attention(bool wanted) {
    takes_attention = wanted;
}

void * function(ggml_backend_reg_t, const char * name) {
    const struct {
        const char * name;
        void * address;
    } functions[] = {
        {"ggml_backend_set_n_threads", reinterpret_cast<void *>(set_num_threads)},
        {"medusa_num_computed", reinterpret_cast<void *>(count)},
        {"medusa_set_own_threads", reinterpret_cast<void *>(set_own_threads)},
        {"medusa_take_attention", reinterpret_cast<void *>(take_attention)},
        {"medusa_cpu_name", reinterpret_cast<void *>(cpu_name)},
        {"medusa_limit_cpu", reinterpret_cast<void *>(limit_cpu)},
        {"medusa_packed_buffer_type", reinterpret_cast<void *>(packed_buffer_type)},
        {"medusa_can_pack", reinterpret_cast<void *>(can_pack)},
    };
    for (const auto & each : functions) {
        if (std::strcmp(each.name, name) == 0) {
            return each.address;
        }
    }
    return nullptr;
}

}  // namespace
}  // namespace medusa

extern "C" {

__attribute__((visibility("default"))) ggml_backend_reg_t ggml_backend_init(void) {
    static ggml_backend_reg registry = {
        GGML_BACKEND_API_VERSION,
        {medusa::registry_name, medusa::num_devices, medusa::the_device, medusa::function},
        nullptr,
    };
    return &registry;
}

}
