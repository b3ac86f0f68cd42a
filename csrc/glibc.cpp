// What keeps a binary that was built on a new system loadable on one of 2018 (glibc 2.28): the two symbols that newer
// headers would take from a newer glibc. Linked with --wrap=dlsym.

#include <features.h>

#if defined(__GLIBC__) && (defined(__x86_64__) || defined(__aarch64__))

#if defined(__x86_64__)
__asm__(".symver dlsym_of_old, dlsym@GLIBC_2.2.5");
#else
__asm__(".symver dlsym_of_old, dlsym@GLIBC_2.17");
#endif

extern "C" {
void* dlsym_of_old(void* handle, const char* name);
__attribute__((visibility("hidden"))) void* __wrap_dlsym(void* handle, const char* name) {
  return dlsym_of_old(handle, name);
}

// Whether the process has one thread: shared pointers then count without atomics. No is always right.
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;
}

#endif
