// Included first in every file of kernels (CMakeLists.txt): the libraries also load on systems with
// older libraries than those that they are built with, down to manylinux_2_28's (glibc 2.28, GCC
// 8).
#if defined(__x86_64__) && defined(__gnu_linux__)
// Since glibc 2.29, exp, log and pow have a second version, which no longer sets errno.
__asm__(".symver exp, exp@GLIBC_2.2.5");
__asm__(".symver log, log@GLIBC_2.2.5");
__asm__(".symver pow, pow@GLIBC_2.2.5");
#endif
