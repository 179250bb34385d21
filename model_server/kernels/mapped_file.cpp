#include "mapped_file.h"

#include <cinttypes>
#include <cstdint>
#include <cstdio>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace medusa {

#if defined(__linux__)

namespace {

// Only of a shared mapping do pages come back as they were.
bool is_shared_mapping(uintptr_t address) {
    std::FILE * mappings = std::fopen("/proc/self/maps", "r");
    bool shared = false;
    char text[512];
    while (mappings && std::fgets(text, sizeof text, mappings)) {
        uintptr_t begin, end;
        char may_share;
        if (std::sscanf(text, "%" SCNxPTR "-%" SCNxPTR " %*3c%c", &begin, &end, &may_share) == 3 &&
            begin <= address && address < end) {
            shared = may_share == 's';
            break;
        }
    }
    if (mappings) {
        std::fclose(mappings);
    }
    return shared;
}

}  // namespace

void release_mapped(const void * data, size_t size) {
    const uintptr_t page = sysconf(_SC_PAGESIZE), begin = reinterpret_cast<uintptr_t>(data);
    const uintptr_t first = (begin + page - 1) / page * page, end = (begin + size) / page * page;
    if (first < end && is_shared_mapping(begin)) {
        madvise(reinterpret_cast<void *>(first), end - first, MADV_DONTNEED);
    }
}

#else

void release_mapped(const void *, size_t) {}

#endif

}  // namespace medusa
