/* alone PROGRAM [ARGUMENT...]: runs a static program natively where it can reach nothing of the machine: in user, mount,
 * process, network, IPC and host name namespaces of its own, without any capability outside (its root is an unused user of
 * the host), and with an empty tmpfs as its root directory. Started by root, for what calls everything with odd arguments. */
#include "../check.h"
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>

#define FIRST_USER 2100000000 /* of users and groups of the host that nobody has */
#define TMPFS_MAGIC 0x01021994

static void put(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    NEED(fd >= 0);
    NEED(write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    close(fd);
}

/* In the namespaces: an empty tmpfs becomes the root, and the host's is let go. */
static void enter(int program)
{
    struct statfs root;
    char part[65536];
    ssize_t n;
    NEED(setresgid(0, 0, 0) == 0 && setresuid(0, 0, 0) == 0);
    NEED(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0);
    NEED(mount("none", "/tmp", "tmpfs", 0, "mode=755,size=64m") == 0);
    NEED(chdir("/tmp") == 0 && mkdir("old", 0700) == 0 && mkdir("tmp", 01777) == 0);
    int copy = open("program", O_WRONLY | O_CREAT | O_CLOEXEC, 0755);
    NEED(copy >= 0);
    while ((n = read(program, part, sizeof part)) > 0)
        NEED(write(copy, part, n) == n);
    NEED(n == 0);
    close(copy);
    close(program);
    NEED(syscall(SYS_pivot_root, ".", "old") == 0);
    NEED(chdir("/") == 0 && umount2("/old", MNT_DETACH) == 0 && rmdir("/old") == 0);
    NEED(statfs("/", &root) == 0 && root.f_type == TMPFS_MAGIC);
    NEED(syscall(SYS_close_range, 3, ~0u, 0) == 0);
}

int main(int argc, char **argv)
{
    int ends[2], status;
    char byte, map[64];
    NEED(argc > 1 && geteuid() == 0);
    NEED(setpriority(PRIO_PROCESS, 0, 0) == 0); /* however nice the tests themselves are run */
    int program = open(argv[1], O_RDONLY | O_CLOEXEC);
    NEED(program >= 0);
    NEED(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
    pid_t pid = fork();
    NEED(pid >= 0);
    if (pid == 0) {
        NEED(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0);
        close(ends[0]);
        NEED(unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS) == 0);
        NEED(write(ends[1], "x", 1) == 1 && read(ends[1], &byte, 1) == 1);
        enter(program);
        pid_t first = fork(); /* process 1 of its namespace: all end with it */
        NEED(first >= 0);
        if (first == 0) {
            NEED(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0);
            argv[1] = "/program";
            execv("/program", argv + 1);
            _exit(127);
        }
        NEED(waitpid(first, &status, 0) == first);
        _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 126);
    }
    close(ends[1]);
    NEED(read(ends[0], &byte, 1) == 1);
    snprintf(map, sizeof map, "/proc/%d/uid_map", pid);
    char line[64];
    snprintf(line, sizeof line, "0 %d 65536", FIRST_USER);
    put(map, line);
    snprintf(map, sizeof map, "/proc/%d/gid_map", pid);
    put(map, line);
    NEED(write(ends[0], "x", 1) == 1);
    NEED(waitpid(pid, &status, 0) == pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 125;
}
