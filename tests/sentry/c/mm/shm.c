/* System V shared memory. */
#include "../check.h"
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define PAGE 4096UL

int main(void)
{
    key_t key = 0x5eed0000 + (getpid() & 0xffff);
    struct shmid_ds stat;
    int status;

    FAILS(shmget(key, PAGE, 0600), ENOENT);
    FAILS(shmget(key, 0, IPC_CREAT | 0600), EINVAL);
    int id = shmget(key, 3 * PAGE - 100, IPC_CREAT | IPC_EXCL | 0640);
    NEED(id >= 0);
    FAILS(shmget(key, PAGE, IPC_CREAT | IPC_EXCL | 0600), EEXIST);
    CHECK(shmget(key, PAGE, 0) == id);
    CHECK(shmget(key, 0, 0) == id);
    FAILS(shmget(key, 4 * PAGE, 0), EINVAL);

    CHECK(shmctl(id, IPC_STAT, &stat) == 0);
    CHECK(stat.shm_segsz == 3 * PAGE - 100 && stat.shm_nattch == 0 && stat.shm_perm.mode == 0640);
    CHECK(stat.shm_cpid == getpid() && stat.shm_lpid == 0 && stat.shm_atime == 0 && stat.shm_ctime != 0);
    CHECK(stat.shm_perm.__key == key);

    int *at = shmat(id, NULL, 0);
    NEED(at != (void *)-1);
    CHECK(*at == 0);
    *at = 17;
    int *read = shmat(id, NULL, SHM_RDONLY);
    CHECK(read != (void *)-1 && read != at && *read == 17);
    FAILS(mprotect(read, PAGE, PROT_READ | PROT_WRITE), EACCES);
    FAILS((long)shmat(id, (char *)at + 1, 0), EINVAL);
    FAILS((long)shmat(id, at, 0), EINVAL); /* taken */
    FAILS((long)shmat(id, NULL, SHM_REMAP), EINVAL);
    FAILS((long)shmat(0x7fffffff, NULL, 0), EINVAL);
    CHECK(shmctl(id, IPC_STAT, &stat) == 0 && stat.shm_nattch == 2 && stat.shm_lpid == getpid());

    char *room = mmap(NULL, 8 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    NEED(room != MAP_FAILED);
    CHECK(shmat(id, room + PAGE + 5, SHM_RND | SHM_REMAP) == room + PAGE);
    CHECK(*(int *)(room + PAGE) == 17);
    CHECK(shmctl(id, IPC_STAT, &stat) == 0 && stat.shm_nattch == 3);
    CHECK(munmap(room + 2 * PAGE, PAGE) == 0); /* leaves two parts */
    CHECK(shmdt(room + PAGE) == 0);
    FAILS(shmdt(room + PAGE), EINVAL);
    CHECK(shmctl(id, IPC_STAT, &stat) == 0 && stat.shm_nattch == 2);
    CHECK(shmdt(read) == 0);
    FAILS(shmdt((char *)at + 1), EINVAL);

    pid_t pid = fork();
    if (pid == 0) {
        shmctl(id, IPC_STAT, &stat);
        int both = stat.shm_nattch == 2;
        *at = 99;
        _exit(both ? 3 : 1);
    }
    CHECK(waitpid(pid, &status, 0) == pid && WEXITSTATUS(status) == 3);
    CHECK(*at == 99);
    CHECK(shmctl(id, IPC_STAT, &stat) == 0 && stat.shm_nattch == 1);

    if (geteuid() == 0) {
        pid = fork();
        if (pid == 0) {
            CHECK(setresgid(1234, 1234, 1234) == 0 && setresuid(1234, 1234, 1234) == 0);
            FAILS((long)shmat(id, NULL, SHM_RDONLY), EACCES);
            FAILS(shmctl(id, IPC_STAT, &stat), EACCES);
            FAILS(shmctl(id, IPC_RMID, NULL), EPERM);
            FAILS(shmget(key, 0, 0004), EACCES);
            _exit(check_failures);
        }
        CHECK(waitpid(pid, &status, 0) == pid && status == 0);
        stat.shm_perm.uid = stat.shm_perm.gid = 1234;
        stat.shm_perm.mode = 0400;
        CHECK(shmctl(id, IPC_SET, &stat) == 0);
        pid = fork();
        if (pid == 0) {
            CHECK(setresgid(1234, 1234, 1234) == 0 && setresuid(1234, 1234, 1234) == 0);
            CHECK(shmat(id, NULL, SHM_RDONLY) != (void *)-1);
            FAILS((long)shmat(id, NULL, 0), EACCES);
            _exit(check_failures);
        }
        CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    }

    CHECK(shmctl(id, SHM_LOCK, NULL) == 0);
    CHECK(shmctl(id, IPC_STAT, &stat) == 0 && stat.shm_perm.mode & SHM_LOCKED);
    CHECK(shmctl(id, SHM_UNLOCK, NULL) == 0);
    struct shminfo info;
    CHECK(shmctl(0, IPC_INFO, (struct shmid_ds *)&info) >= 0 && info.shmmin == 1);
    FAILS(shmctl(id, 77, NULL), EINVAL);
    FAILS(shmctl(id, IPC_STAT, (void *)8), EFAULT);

    /* Removed while it is attached: no key leads to it, the memory stays until the last one lets go. */
    CHECK(shmctl(id, IPC_RMID, NULL) == 0);
    FAILS(shmget(key, 0, 0), ENOENT);
    CHECK(*at == 99);
    CHECK(shmctl(id, IPC_STAT, &stat) == 0 && stat.shm_perm.mode & SHM_DEST);
    int *late = shmat(id, NULL, 0);
    CHECK(late != (void *)-1 && *late == 99 && shmdt(late) == 0);
    CHECK(shmdt(at) == 0);
    FAILS(shmctl(id, IPC_STAT, &stat), EINVAL);
    FAILS((long)shmat(id, NULL, 0), EINVAL);
    int next = shmget(IPC_PRIVATE, PAGE, 0600);
    CHECK(next >= 0 && next != id);
    CHECK(shmctl(next, IPC_RMID, NULL) == 0);
    DONE();
}
