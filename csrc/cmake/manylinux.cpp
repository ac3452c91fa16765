// What newer compilers take from libraries that manylinux_2_28 does not have (manylinux.h).
#include <sstream>

// glibc 2.32: whether the process has one thread, so that shared_ptr may count without atomics. The
// answer here is always "no".
extern "C" __attribute__((visibility("hidden"))) char __libc_single_threaded;
char __libc_single_threaded = 0;

// libstdc++ 11: the text of a string stream, as of C++20. Compiled here it is not taken from there.
#if defined(__GLIBCXX__) && _GLIBCXX_USE_CXX11_ABI
template std::string std::basic_stringbuf<char>::str() const&;
#endif
