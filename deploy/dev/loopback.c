/* Preloaded into DynamoDB Local, which has no option for its address: each IPv4 bind becomes a bind to loopback. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netinet/in.h>
#include <sys/socket.h>

int bind(int socket, const struct sockaddr *address, socklen_t length)
{
    static int (*real_bind)(int, const struct sockaddr *, socklen_t);
    if (!real_bind)
        real_bind = (int (*)(int, const struct sockaddr *, socklen_t))dlsym(RTLD_NEXT, "bind");
    if (address->sa_family != AF_INET || length < sizeof(struct sockaddr_in))
        return real_bind(socket, address, length);
    struct sockaddr_in loopback = *(const struct sockaddr_in *)address;
    loopback.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return real_bind(socket, (const struct sockaddr *)&loopback, sizeof loopback);
}
