#pragma once

namespace medusa {

struct Range {
    int begin, end;
    int size() const { return end - begin; }
};

}  // namespace medusa
