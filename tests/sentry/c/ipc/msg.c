/* msgget(2), msgsnd(2), msgrcv(2), msgctl(2). */
#include "../check.h"
#include <signal.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/wait.h>

struct message {
    long type;
    char text[9000];
};

static void caught(int signo) { (void)signo; }

int main(void) {
    static struct message m, r;
    struct msqid_ds ds;
    key_t key = 0x5ca1ab1f;
    int stale = msgget(key, 0), status;
    if (stale >= 0)
        msgctl(stale, IPC_RMID, 0);
    FAILS(msgget(key, 0), ENOENT);
    int id = msgget(key, IPC_CREAT | IPC_EXCL | 0600);
    NEED(id >= 0);
    FAILS(msgget(key, IPC_CREAT | IPC_EXCL), EEXIST);
    CHECK(msgget(key, 0) == id);
    CHECK(msgctl(id, IPC_STAT, &ds) == 0 && ds.msg_qnum == 0 && ds.msg_qbytes == 16384 && ds.msg_stime == 0);
    for (int i = 1; i <= 5; i++) {
        m.type = 6 - i;
        sprintf(m.text, "message %d", i);
        CHECK(msgsnd(id, &m, 10, 0) == 0);
    }
    CHECK(msgctl(id, IPC_STAT, &ds) == 0 && ds.msg_qnum == 5 && ds.msg_cbytes == 50 && ds.msg_lspid == getpid());
    CHECK(msgrcv(id, &r, 100, 0, 0) == 10 && r.type == 5 && !memcmp(r.text, "message 1", 10));
    CHECK(msgrcv(id, &r, 100, 2, 0) == 10 && r.type == 2);
    CHECK(msgrcv(id, &r, 100, -3, 0) == 10 && r.type == 1);
    CHECK(msgrcv(id, &r, 100, 4, MSG_EXCEPT) == 10 && r.type == 3);
    FAILS(msgrcv(id, &r, 100, 9, IPC_NOWAIT), ENOMSG);
    FAILS(msgrcv(id, &r, 5, 0, 0), E2BIG);
    CHECK(msgrcv(id, &r, 5, 0, MSG_NOERROR) == 5 && !memcmp(r.text, "messa", 5));
    FAILS(msgrcv(id, &r, 100, 0, IPC_NOWAIT), ENOMSG);
    m.type = 0;
    FAILS(msgsnd(id, &m, 1, 0), EINVAL);
    m.type = 1;
    FAILS(msgsnd(id, &m, 8193, 0), EINVAL);
    CHECK(msgsnd(id, &m, 0, 0) == 0 && msgrcv(id, &r, 0, 0, 0) == 0);
    CHECK(msgsnd(id, &m, 8192, 0) == 0 && msgsnd(id, &m, 8192, 0) == 0);
    FAILS(msgsnd(id, &m, 1, IPC_NOWAIT), EAGAIN);

    /* A full queue waits, an empty one too. */
    pid_t pid = fork();
    if (pid == 0) {
        m.type = 42;
        _exit(msgsnd(id, &m, 3, 0) != 0);
    }
    usleep(30000);
    CHECK(msgrcv(id, &r, 9000, 0, 0) == 8192 && msgrcv(id, &r, 9000, 0, 0) == 8192);
    CHECK(msgrcv(id, &r, 9000, 42, 0) == 3);
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    pid = fork();
    if (pid == 0)
        _exit(msgrcv(id, &r, 100, 7, 0) != 4 || memcmp(r.text, "four", 4));
    usleep(30000);
    m.type = 6;
    CHECK(msgsnd(id, &m, 4, 0) == 0);
    m.type = 7;
    strcpy(m.text, "four");
    CHECK(msgsnd(id, &m, 4, 0) == 0);
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    CHECK(msgrcv(id, &r, 100, 0, 0) == 4 && r.type == 6);

    struct sigaction action = {.sa_handler = caught, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &action, 0);
    ualarm(30000, 0);
    FAILS(msgrcv(id, &r, 100, 0, 0), EINTR);
    CHECK(msgctl(id, IPC_STAT, &ds) == 0);
    ds.msg_qbytes = 100;
    ds.msg_perm.mode = 0620;
    CHECK(msgctl(id, IPC_SET, &ds) == 0 && msgctl(id, IPC_STAT, &ds) == 0);
    CHECK(ds.msg_qbytes == 100 && ds.msg_perm.mode == 0620);
    FAILS(msgsnd(id, &m, 101, IPC_NOWAIT), EAGAIN);
    pid = fork();
    if (pid == 0)
        _exit(msgrcv(id, &r, 100, 0, 0) == -1 && errno == EIDRM ? 0 : 1);
    usleep(30000);
    CHECK(msgctl(id, IPC_RMID, 0) == 0);
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    FAILS(msgsnd(id, &m, 1, 0), EINVAL);
    FAILS(msgctl(id, IPC_STAT, &ds), EINVAL);
    DONE();
}
