/* What programs ask about the network: routes by netlink, interfaces by ioctl. */
#include "check.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

static void addresses(void)
{
    struct ifaddrs *list, *each;
    int found = 0;
    NEED(getifaddrs(&list) == 0);
    for (each = list; each != NULL; each = each->ifa_next)
        if (strcmp(each->ifa_name, "lo") == 0) {
            CHECK(each->ifa_flags & IFF_LOOPBACK);
            if (each->ifa_addr != NULL && each->ifa_addr->sa_family == AF_INET) {
                struct sockaddr_in *address = (struct sockaddr_in *)each->ifa_addr;
                struct sockaddr_in *mask = (struct sockaddr_in *)each->ifa_netmask;
                CHECK(address->sin_addr.s_addr == htonl(INADDR_LOOPBACK));
                CHECK(mask->sin_addr.s_addr == htonl(0xff000000));
                found |= 1;
            }
            if (each->ifa_addr != NULL && each->ifa_addr->sa_family == AF_PACKET)
                found |= 2;
        }
    CHECK(found == 3);
    freeifaddrs(list);
    CHECK(if_nametoindex("lo") == 1);
    CHECK(if_nametoindex("none0") == 0 && errno == ENODEV);
    char name[IF_NAMESIZE];
    CHECK(if_indextoname(1, name) != NULL && strcmp(name, "lo") == 0);
}

static void ioctls(void)
{
    struct ifreq request;
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    memset(&request, 0, sizeof request);
    strcpy(request.ifr_name, "lo");
    CHECK(ioctl(fd, SIOCGIFFLAGS, &request) == 0 && (request.ifr_flags & (IFF_UP | IFF_LOOPBACK)) == (IFF_UP | IFF_LOOPBACK));
    CHECK(ioctl(fd, SIOCGIFADDR, &request) == 0);
    CHECK(((struct sockaddr_in *)&request.ifr_addr)->sin_addr.s_addr == htonl(INADDR_LOOPBACK));
    CHECK(ioctl(fd, SIOCGIFMTU, &request) == 0 && request.ifr_mtu == 65536);
    struct ifreq all[32];
    struct ifconf config = {.ifc_len = sizeof all, .ifc_req = all};
    CHECK(ioctl(fd, SIOCGIFCONF, &config) == 0 && config.ifc_len >= (int)sizeof(struct ifreq));
    strcpy(request.ifr_name, "none0");
    FAILS(ioctl(fd, SIOCGIFFLAGS, &request), ENODEV);
    FAILS(ioctl(fd, 0x1234, &request), ENOTTY);
    close(fd);
}

static void dump(void)
{
    struct {
        struct nlmsghdr header;
        struct ifinfomsg info;
    } request = {.header = {.nlmsg_len = sizeof request, .nlmsg_type = RTM_GETLINK,
                            .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP, .nlmsg_seq = 42}};
    struct sockaddr_nl address = {.nl_family = AF_NETLINK};
    socklen_t size = sizeof address;
    char buffer[32768];
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    NEED(fd >= 0);
    CHECK(bind(fd, (struct sockaddr *)&address, sizeof address) == 0);
    CHECK(getsockname(fd, (struct sockaddr *)&address, &size) == 0 && size == sizeof address && address.nl_pid != 0);
    CHECK(send(fd, &request, sizeof request, 0) == sizeof request);
    int done = 0, links = 0;
    while (!done) {
        ssize_t got = recv(fd, buffer, sizeof buffer, 0);
        NEED(got > 0);
        size_t left = got;
        for (struct nlmsghdr *each = (struct nlmsghdr *)buffer; NLMSG_OK(each, left); each = NLMSG_NEXT(each, left)) {
            CHECK(each->nlmsg_seq == 42 && each->nlmsg_pid == address.nl_pid);
            done |= each->nlmsg_type == NLMSG_DONE;
            links += each->nlmsg_type == RTM_NEWLINK;
        }
    }
    CHECK(links >= 1);
    FAILS(recv(fd, buffer, 10, MSG_DONTWAIT), EAGAIN);
    close(fd);
    FAILS(socket(AF_NETLINK, SOCK_STREAM, NETLINK_ROUTE), ESOCKTNOSUPPORT);
}

int main(void)
{
    addresses();
    ioctls();
    dump();
    DONE();
}
