/* Makes the calls whose numbers are given, without arguments that mean anything, and says what each answers. Only for behind
 * the sentry: Linux serves some of them. */
#include "../check.h"
#include <sys/syscall.h>

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        errno = 0;
        long result = syscall(atoi(argv[i]), 0, 0, 0, 0, 0, 0);
        printf("%s %s\n", argv[i], result == -1 ? strerrorname_np(errno) : "done");
    }
    DONE();
}
