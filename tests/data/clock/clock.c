/* The time of day as a test wants it: before 1970 while the file exists that CCOD_TEST_CLOCK names. Preloaded. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
#include <sys/syscall.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
    const char *mark = getenv("CCOD_TEST_CLOCK");
    int result = (int)syscall(SYS_clock_gettime, clock, now);
    if (result == 0 && clock == CLOCK_REALTIME && mark != NULL && access(mark, F_OK) == 0) {
        now->tv_sec = -86400;
    }
    return result;
}
