/* semget(2), semop(2), semctl(2). */
#include "../check.h"
#include <limits.h>
#include <signal.h>
#include <sys/ipc.h>
#include <sys/sem.h>
#include <sys/wait.h>
#include <time.h>

union semun {
    int val;
    struct semid_ds *buf;
    unsigned short *array;
    struct seminfo *info;
};

static void *volatile nowhere = (void *)8;
static void caught(int signo) { (void)signo; }

static int op(int id, int number, int change, int flags) {
    struct sembuf one = {number, change, flags};
    return semop(id, &one, 1);
}

int main(void) {
    union semun arg;
    struct semid_ds ds;
    unsigned short values[3];
    key_t key = 0x5ca1ab1e;
    int stale = semget(key, 0, 0);
    if (stale >= 0)
        semctl(stale, 0, IPC_RMID);
    FAILS(semget(key, 3, 0), ENOENT);
    FAILS(semget(IPC_PRIVATE, 0, 0600), EINVAL);
    FAILS(semget(IPC_PRIVATE, -1, 0600), EINVAL);
    int id = semget(key, 3, IPC_CREAT | IPC_EXCL | 0640);
    NEED(id >= 0);
    FAILS(semget(key, 3, IPC_CREAT | IPC_EXCL), EEXIST);
    FAILS(semget(key, 4, 0), EINVAL);
    CHECK(semget(key, 0, 0) == id && semget(key, 2, IPC_CREAT) == id);
    arg.buf = &ds;
    CHECK(semctl(id, 0, IPC_STAT, arg) == 0 && ds.sem_nsems == 3 && ds.sem_otime == 0 && ds.sem_ctime > 0);
    CHECK(ds.sem_perm.mode == 0640 && ds.sem_perm.uid == geteuid() && ds.sem_perm.__key == key);
    arg.val = 5;
    CHECK(semctl(id, 1, SETVAL, arg) == 0 && semctl(id, 1, GETVAL) == 5 && semctl(id, 1, GETPID) == getpid());
    arg.val = 32768;
    FAILS(semctl(id, 1, SETVAL, arg), ERANGE);
    FAILS(semctl(id, 3, GETVAL), EINVAL);
    arg.array = values;
    values[0] = 1, values[1] = 2, values[2] = 3;
    CHECK(semctl(id, 0, SETALL, arg) == 0);
    values[0] = values[1] = values[2] = 9;
    CHECK(semctl(id, 0, GETALL, arg) == 0 && values[0] == 1 && values[1] == 2 && values[2] == 3);

    /* All or nothing. */
    struct sembuf two[2] = {{0, -1, IPC_NOWAIT}, {1, -5, IPC_NOWAIT}};
    FAILS(semop(id, two, 2), EAGAIN);
    CHECK(semctl(id, 0, GETVAL) == 1);
    two[1].sem_op = -2;
    CHECK(semop(id, two, 2) == 0 && semctl(id, 0, GETVAL) == 0 && semctl(id, 1, GETVAL) == 0);
    CHECK(semctl(id, 0, IPC_STAT, (arg.buf = &ds, arg)) == 0 && ds.sem_otime > 0);
    CHECK(op(id, 0, 0, 0) == 0);
    FAILS(op(id, 2, 0, IPC_NOWAIT), EAGAIN);
    FAILS(op(id, 3, 1, 0), EFBIG);
    FAILS(op(id, 0, 32767, 0) == 0 ? op(id, 0, 1, 0) : 0, ERANGE);
    arg.val = 0;
    semctl(id, 0, SETVAL, arg);
    FAILS(semop(id, two, 0), EINVAL);
    FAILS(semop(id, two, 501), E2BIG);
    FAILS(semop(id, nowhere, 1), EFAULT);
    FAILS(op(id + 0x100000, 0, 1, 0), EINVAL);

    /* Waiting for more and for zero. */
    pid_t pid = fork();
    if (pid == 0)
        _exit(op(id, 0, -3, 0) != 0 || semctl(id, 0, GETVAL) != 1);
    while (semctl(id, 0, GETNCNT) != 1)
        usleep(1000);
    CHECK(op(id, 0, 2, 0) == 0);
    usleep(20000);
    CHECK(semctl(id, 0, GETNCNT) == 1 && semctl(id, 0, GETVAL) == 2);
    CHECK(op(id, 0, 2, 0) == 0);
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    CHECK(semctl(id, 0, GETNCNT) == 0 && semctl(id, 0, GETPID) == pid);
    pid = fork();
    if (pid == 0)
        _exit(op(id, 0, 0, 0) != 0);
    while (semctl(id, 0, GETZCNT) != 1)
        usleep(1000);
    CHECK(op(id, 0, -1, 0) == 0);
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);

    /* Undone at the end of the process. */
    arg.val = 2;
    semctl(id, 2, SETVAL, arg);
    pid = fork();
    if (pid == 0)
        _exit(op(id, 2, -2, SEM_UNDO) != 0 || op(id, 1, 4, SEM_UNDO) != 0);
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK(semctl(id, 1, GETVAL) == 0 && semctl(id, 2, GETVAL) == 2);
    arg.val = 0;
    semctl(id, 0, SETVAL, arg);

    /* Time, signals, removal. */
    struct timespec ts = {0, 30000000};
    struct sembuf take = {0, -1, 0};
    FAILS(semtimedop(id, &take, 1, &ts), EAGAIN);
    ts.tv_nsec = -1;
    FAILS(semtimedop(id, &take, 1, &ts), EINVAL);
    struct sigaction action = {.sa_handler = caught, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &action, 0);
    ualarm(30000, 0);
    FAILS(op(id, 0, -1, 0), EINTR);
    pid = fork();
    if (pid == 0)
        _exit(op(id, 0, -1, 0) == -1 && errno == EIDRM ? 0 : 1);
    while (semctl(id, 0, GETNCNT) != 1)
        usleep(1000);
    arg.buf = &ds;
    CHECK(semctl(id, 0, IPC_STAT, arg) == 0);
    ds.sem_perm.mode = 0600;
    CHECK(semctl(id, 0, IPC_SET, arg) == 0 && semctl(id, 0, IPC_STAT, arg) == 0 && ds.sem_perm.mode == 0600);
    CHECK(semctl(id, 0, IPC_RMID) == 0);
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    FAILS(semctl(id, 0, GETVAL), EINVAL);
    FAILS(semctl(id, 0, 99), EINVAL);
    struct seminfo info;
    arg.info = &info;
    CHECK(semctl(0, 0, IPC_INFO, arg) >= 0 && info.semopm == 500 && info.semvmx == 32767 && info.semmsl == 32000);

    /* Permissions, for who is not root. */
    id = semget(IPC_PRIVATE, 1, 0600);
    pid = fork();
    if (pid == 0) {
        if (getuid() == 0 && setuid(4321))
            _exit(2);
        if (op(id, 0, 1, 0) != -1 || errno != EACCES)
            _exit(3);
        if (semctl(id, 0, IPC_RMID) != -1 || errno != EPERM)
            _exit(4);
        _exit(semctl(id, 0, GETVAL) != -1 || errno != EACCES);
    }
    CHECK(waitpid(pid, &status, 0) == pid && (status == 0 || getuid() != 0));
    CHECK(semctl(id, 0, IPC_RMID) == 0);
    DONE();
}
