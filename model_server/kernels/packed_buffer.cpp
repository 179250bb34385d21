#include "packed_buffer.h"

#include "mapped_file.h"

#include "ggml-backend-impl.h"

#include <cstdlib>
#include <cstring>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace medusa {
namespace {

constexpr size_t huge_page = size_t(2) << 20;

const Layout & layout_of(const ggml_tensor * tensor) {
    return *medusa::layout_of(tensor->type);
}

int64_t num_blocks(const ggml_tensor * tensor) {
    return tensor->ne[0] / layout_of(tensor).weights;
}

// Of one matrix: a tensor may hold several, one behind the other.
int64_t num_groups(const ggml_tensor * tensor) {
    return (tensor->ne[1] + group_rows - 1) / group_rows;
}

size_t matrix_bytes(const ggml_tensor * tensor) {
    return tensor->ne[1] * tensor->nb[1];
}

uint8_t * group_of(const ggml_tensor * tensor, int64_t group) {
    const size_t size = group_bytes(layout_of(tensor), num_blocks(tensor));
    return static_cast<uint8_t *>(tensor->data) + group * size;
}

bool can_pack(const ggml_tensor * tensor) {
    const auto & ne = tensor->ne;
    return medusa::can_pack(tensor->type, ne[0], ne[1], ne[2] * ne[3]);
}

// ---- buffer

void free_buffer(ggml_backend_buffer_t buffer) {
    std::free(buffer->context);
}

void * base(ggml_backend_buffer_t buffer) {
    return buffer->context;
}

ggml_status init_tensor(ggml_backend_buffer_t, ggml_tensor * tensor) {
    return tensor->view_src || can_pack(tensor) ? GGML_STATUS_SUCCESS : GGML_STATUS_FAILED;
}

void set_tensor(
    ggml_backend_buffer_t, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    const size_t whole = matrix_bytes(tensor);
    GGML_ASSERT(offset % whole == 0 && size % whole == 0 && "matrices are packed whole");
    const auto * rows = static_cast<const uint8_t *>(data);
    const int64_t blocks = num_blocks(tensor), groups = num_groups(tensor);
    const int64_t before = offset / whole * groups, total = size / whole * groups;
#pragma omp parallel for schedule(dynamic, 4)
    for (int64_t i = 0; i < total; i++) {
        const int64_t first = i % groups * group_rows, left = tensor->ne[1] - first;
        pack_group(layout_of(tensor), blocks, rows + i / groups * whole + first * tensor->nb[1],
            left < group_rows ? int(left) : group_rows, group_of(tensor, before + i));
    }
    release_mapped(data, size);  // else the model would be in memory twice
}

void get_tensor(
    ggml_backend_buffer_t, const ggml_tensor * tensor, void * data, size_t offset, size_t size) {
    const size_t row_bytes = tensor->nb[1];
    GGML_ASSERT(offset % row_bytes == 0 && size % row_bytes == 0 && "whole rows are unpacked");
    auto * out = static_cast<uint8_t *>(data);
    for (size_t done = 0; done < size; done += row_bytes) {
        unpack_row(tensor, (offset + done) / row_bytes, out + done);
    }
}

void clear(ggml_backend_buffer_t buffer, uint8_t value) {
    std::memset(buffer->context, value, buffer->size);
}

// ---- type

const char * name(ggml_backend_buffer_type_t) {
    return "MEDUSA_PACKED";
}

ggml_backend_buffer_t allocate(ggml_backend_buffer_type_t type, size_t size) {
    const size_t whole = (size + huge_page - 1) / huge_page * huge_page;
    void * data = std::aligned_alloc(huge_page, whole);
    if (!data) {
        return nullptr;
    }
#if defined(__linux__)
    madvise(data, whole, MADV_HUGEPAGE);  // streams of weights cross few page boundaries
#endif
    ggml_backend_buffer_i interface = {};
    interface.free_buffer = free_buffer;
    interface.get_base = base;
    interface.init_tensor = init_tensor;
    interface.set_tensor = set_tensor;
    interface.get_tensor = get_tensor;
    interface.clear = clear;
    return ggml_backend_buffer_init(type, interface, data, size);
}

size_t alignment(ggml_backend_buffer_type_t) {
    return 64;
}

size_t packed_bytes(ggml_backend_buffer_type_t, const ggml_tensor * tensor) {
    if (!can_pack(tensor)) {
        return ggml_nbytes(tensor);
    }
    const int64_t num_matrices = tensor->ne[2] * tensor->ne[3];
    return num_matrices * num_groups(tensor) * group_bytes(layout_of(tensor), num_blocks(tensor));
}

ggml_backend_buffer_type the_type = [] {
    ggml_backend_buffer_type_i interface = {};
    interface.get_name = name;
    interface.alloc_buffer = allocate;
    interface.get_alignment = alignment;
    interface.get_alloc_size = packed_bytes;
    return ggml_backend_buffer_type{interface, nullptr, nullptr};
}();

}  // namespace

ggml_backend_buffer_type_t packed_buffer_type() {
    return &the_type;
}

bool can_pack(ggml_type type, int64_t num_values, int64_t num_rows, int64_t num_matrices) {
    const Layout * layout = layout_of(type);
    return layout && num_values % layout->weights == 0 && num_rows > 0 && num_matrices > 0;
}

bool is_packed(const ggml_tensor * tensor) {
    const ggml_tensor * whole = tensor->view_src ? tensor->view_src : tensor;
    const bool all_of_it = tensor->view_offs == 0 && tensor->type == whole->type &&
                           tensor->ne[0] == whole->ne[0] && tensor->ne[1] == whole->ne[1];
    return whole->buffer && whole->buffer->buft == &the_type && all_of_it;
}

const uint8_t * packed_group(const ggml_tensor * tensor, int64_t group) {
    return group_of(tensor, group);
}

void unpack_row(const ggml_tensor * tensor, int64_t row, uint8_t * out) {
    const int64_t before = row / tensor->ne[1] * num_groups(tensor);
    row %= tensor->ne[1];
    const uint8_t * group = group_of(tensor, before + row / group_rows);
    unpack_row(layout_of(tensor), num_blocks(tensor), group, int(row % group_rows), out);
}

}  // namespace medusa
