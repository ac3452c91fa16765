// Included first in every file of CPU kernels (cpu_kernels.cmake): they also load on systems with
// an older C library than the one that they are built with, down to manylinux_2_28's.
#define MAST_EXT_MANYLINUX
#if defined(__x86_64__) && defined(__gnu_linux__)
// Since glibc 2.29, exp, log and pow have a second version, which no longer sets errno.
__asm__(".symver exp, exp@GLIBC_2.2.5");
__asm__(".symver log, log@GLIBC_2.2.5");
__asm__(".symver pow, pow@GLIBC_2.2.5");
#endif
