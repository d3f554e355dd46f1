/* /proc and /sys of the machine, proc(5), proc_sys(5), sysfs(5). */
#include "check.h"
#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <sys/vfs.h>
#include <time.h>

static char buffer[1 << 18];

static ssize_t slurp(const char *path) {
    int fd = open(path, O_RDONLY);
    if (fd < 0)
        return -1;
    ssize_t have = 0, got;
    while ((got = read(fd, buffer + have, sizeof buffer - 1 - have)) > 0)
        have += got;
    close(fd);
    if (got < 0)
        return -1;
    buffer[have] = 0;
    return have;
}

static int count(const char *text) {
    int found = 0;
    for (char *at = buffer; (at = strstr(at, text)); at++)
        found++;
    return found;
}

static int is(const char *path, const char *text) {
    size_t size = strlen(text);
    return slurp(path) == (ssize_t)size + 1 && !memcmp(buffer, text, size) && buffer[size] == '\n';
}

int main(void) {
    struct utsname names;
    CHECK(uname(&names) == 0);
    CHECK(is("/proc/sys/kernel/osrelease", names.release));
    CHECK(is("/proc/sys/kernel/hostname", names.nodename));
    CHECK(is("/proc/sys/kernel/ostype", "Linux"));
    CHECK(slurp("/proc/version") > 0 && !strncmp(buffer, "Linux version ", 14) && strstr(buffer, names.release));

    cpu_set_t set;
    CHECK(sched_getaffinity(0, sizeof set, &set) == 0);
    CHECK(slurp("/proc/cpuinfo") > 0 && count("processor\t:") == CPU_COUNT(&set) && strstr(buffer, "\nflags\t\t:"));
    CHECK(sysconf(_SC_NPROCESSORS_ONLN) == CPU_COUNT(&set) && sysconf(_SC_NPROCESSORS_CONF) >= CPU_COUNT(&set));
    CHECK(slurp("/proc/stat") > 0 && count("\ncpu") == CPU_COUNT(&set) && strstr(buffer, "\nbtime "));
    long boot = atol(strstr(buffer, "\nbtime ") + 7);
    double up, idle;
    CHECK(slurp("/proc/uptime") > 0 && sscanf(buffer, "%lf %lf", &up, &idle) == 2);
    struct timespec now;
    CHECK(clock_gettime(CLOCK_BOOTTIME, &now) == 0 && up <= now.tv_sec + 2 && up >= now.tv_sec - 2);
    CHECK(labs(time(NULL) - (long)up - boot) <= 3);
    struct sysinfo info;
    long total, available;
    CHECK(sysinfo(&info) == 0);
    CHECK(slurp("/proc/meminfo") > 0 && sscanf(buffer, "MemTotal: %ld kB", &total) == 1);
    CHECK(sscanf(strstr(buffer, "MemAvailable:"), "MemAvailable: %ld kB", &available) == 1 && available <= total);
    CHECK(labs((long)(info.totalram * info.mem_unit / 1024) - total) < 16);
    CHECK(slurp("/proc/loadavg") > 0 && count(" ") == 4 && strchr(buffer, '/'));
    CHECK(slurp("/proc/filesystems") > 0 && strstr(buffer, "nodev\tproc\n") && strstr(buffer, "\ttmpfs\n"));
    CHECK(slurp("/proc/mounts") > 0 && strstr(buffer, " / "));
    CHECK(slurp("/proc/swaps") > 0 && !strncmp(buffer, "Filename\t", 9));
    CHECK(slurp("/proc/devices") > 0 && strstr(buffer, "Character devices:\n"));
    CHECK(slurp("/proc/net/dev") > 0 && strstr(buffer, "    lo:"));
    CHECK(slurp("/proc/net/tcp") > 0 && strstr(buffer, "local_address"));
    CHECK(slurp("/proc/net/unix") > 0 && !strncmp(buffer, "Num ", 4));
    CHECK(slurp("/proc/cmdline") >= 0 && slurp("/proc/partitions") >= 0 && slurp("/proc/interrupts") > 0);

    /* Settings. */
    char first[64];
    CHECK(slurp("/proc/sys/kernel/random/uuid") == 37 && buffer[8] == '-' && buffer[36] == '\n');
    memcpy(first, buffer, 37);
    CHECK(slurp("/proc/sys/kernel/random/uuid") == 37 && memcmp(first, buffer, 37));
    CHECK(slurp("/proc/sys/kernel/random/boot_id") == 37);
    memcpy(first, buffer, 37);
    CHECK(slurp("/proc/sys/kernel/random/boot_id") == 37 && !memcmp(first, buffer, 37));
    CHECK(slurp("/proc/sys/kernel/pid_max") > 0 && atoi(buffer) > 300);
    CHECK(slurp("/proc/sys/kernel/cap_last_cap") > 0 && atoi(buffer) >= 37);
    CHECK(slurp("/proc/sys/kernel/ngroups_max") > 0 && atoi(buffer) == 65536);
    CHECK(slurp("/proc/sys/vm/overcommit_memory") > 0 && slurp("/proc/sys/vm/max_map_count") > 0);
    CHECK(slurp("/proc/sys/fs/file-max") > 0 && slurp("/proc/sys/fs/nr_open") > 0);
    CHECK(slurp("/proc/sys/fs/pipe-max-size") > 0 && atoi(buffer) >= 4096);
    CHECK(slurp("/proc/sys/net/core/somaxconn") > 0 && atoi(buffer) > 0);
    FAILS(open("/proc/sys/kernel/ostype", O_WRONLY), geteuid() ? EACCES : EACCES);
    FAILS(open("/proc/sys/kernel/none", O_RDONLY), ENOENT);

    /* Reading on after a seek to the start makes it anew; a small buffer gets it in pieces. */
    int fd = open("/proc/uptime", O_RDONLY);
    char text[64];
    CHECK(fd >= 0 && read(fd, text, 2) == 2 && read(fd, text, sizeof text) > 2 && read(fd, text, sizeof text) == 0);
    CHECK(lseek(fd, 0, SEEK_SET) == 0 && read(fd, text, sizeof text) > 2);
    close(fd);

    /* Directories can be read in pieces, and from the start again. */
    DIR *dir = opendir("/proc");
    NEED(dir != NULL);
    int all = 0, again = 0, dots = 0;
    for (struct dirent *entry; (entry = readdir(dir)); all++)
        dots += !strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..");
    rewinddir(dir);
    while (readdir(dir))
        again++;
    CHECK(dots == 2 && all > 20 && abs(all - again) <= 5);
    closedir(dir);

    struct statfs fs;
    CHECK(statfs("/proc", &fs) == 0 && fs.f_type == 0x9fa0);
    CHECK(statfs("/sys", &fs) == 0 && fs.f_type == 0x62656572);
    CHECK(slurp("/sys/devices/system/cpu/online") > 0);
    CHECK(slurp("/sys/devices/system/cpu/possible") > 0);
    CHECK(slurp("/sys/devices/system/cpu/cpu0/topology/core_id") > 0);
    CHECK(slurp("/sys/kernel/mm/transparent_hugepage/enabled") > 0 && strchr(buffer, '['));
    CHECK(slurp("/sys/class/net/lo/mtu") > 0 && atoi(buffer) == 65536);
    CHECK(slurp("/sys/devices/system/node/node0/cpulist") > 0);
    DONE();
}
