/* Whether a touch of memory faults; for a program that has sigaction(SIGSEGV) call jump(). */
#ifndef FAULTS_H
#define FAULTS_H

#include <setjmp.h>
#include <signal.h>

static sigjmp_buf faulted;

static void jump(int number) {
    (void)number;
    siglongjmp(faulted, 1);
}

static int faults(volatile char *at, int write) {
    if (sigsetjmp(faulted, 1))
        return 1;
    if (write)
        *at = 1;
    else
        (void)*at;
    return 0;
}

#endif
