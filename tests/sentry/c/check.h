/* What the C cases share: each is one program that says what is wrong, with its line, and exits 1 then.
 * A case is run natively first, so that it cannot expect what Linux does not do. */
#ifndef CHECK_H
#define CHECK_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int check_failures;

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            int check_errno = errno; \
            fprintf(stderr, "%s:%d: %s (errno %d %s)\n", __FILE__, __LINE__, #condition, check_errno, \
                    strerror(check_errno)); \
            check_failures++; \
        } \
    } while (0)

/* The call must fail with this error. */
#define FAILS(call, expected) \
    do { \
        errno = 0; \
        long check_result = (long)(call); \
        int check_errno = errno; \
        if (check_result != -1 || check_errno != (expected)) { \
            fprintf(stderr, "%s:%d: %s gave %ld, errno %d %s, not %s\n", __FILE__, __LINE__, #call, check_result, \
                    check_errno, strerror(check_errno), #expected); \
            check_failures++; \
        } \
    } while (0)

/* What follows makes no sense without it. */
#define NEED(condition) \
    do { \
        CHECK(condition); \
        if (check_failures) \
            exit(1); \
    } while (0)

#define DONE() return check_failures ? 1 : 0

#endif
