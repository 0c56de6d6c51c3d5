// Fresh memory costs a page fault every 4 KB: for large outputs more than the kernel itself.
#pragma once

#include <cstddef>

namespace afnext::cpu {

// Asks the system to back a large buffer that is about to be written by huge pages (2 MB), as NumPy
// does for its own arrays. A hint: nothing happens on small buffers or where it is not supported.
void expect_huge_pages(void* data, size_t bytes);

}  // namespace afnext::cpu
