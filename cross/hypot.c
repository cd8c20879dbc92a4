/* The C library has a new hypot since 2.35, and what is linked on a newer system asks for it. These hand the calls to the one that every
 * version has, so that the program keeps to the package's libc6 (>= 2.34). A crate below us calls them; our own code could not help it. */
#if defined(__aarch64__)
#define OLDEST "GLIBC_2.17"
#elif defined(__x86_64__)
#define OLDEST "GLIBC_2.2.5"
#else
#error "which version of the C library was this machine's first?"
#endif

double oldest_hypot(double x, double y);
float oldest_hypotf(float x, float y);
__asm__(".symver oldest_hypot, hypot@" OLDEST);
__asm__(".symver oldest_hypotf, hypotf@" OLDEST);

__attribute__((visibility("hidden"))) double hypot(double x, double y) { return oldest_hypot(x, y); }
__attribute__((visibility("hidden"))) float hypotf(float x, float y) { return oldest_hypotf(x, y); }
