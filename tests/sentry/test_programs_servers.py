"""Servers and their clients in one container, from Debian's packages: what most containers are for.

Each runs on the sentry's own loopback, and some on a network as well, where sockets are the host's.
"""

from __future__ import annotations

import pytest

from tests.vm.support import Casemate

SECONDS = 280
"""A guard against hanging."""
NETWORKS = pytest.mark.parametrize("network", ["none", "host"])

WAIT = """
ready() { for i in $(seq 200); do "$@" >/dev/null 2>&1 && return; sleep 0.1; done; echo "never ready: $*"; exit 1; }
"""


def serve(cm: Casemate, image: str, network: str, text: str) -> list[str]:
    """Run a script in a container; its lines. It fails with any of its commands."""
    command = ["run", "--rm", "--network", network, image, "bash", "-e", "-c", f"cd /tmp\n{WAIT}\n{text}"]
    return cm.out(*command, timeout=SECONDS).splitlines()


REDIS = """
redis-server --port 6399 --bind 127.0.0.1 --unixsocket /tmp/redis.sock --save "" > log & server=$!
cli() { redis-cli -p 6399 "$@"; }
ready cli ping
cli set greeting hello; cli get greeting
redis-cli -s /tmp/redis.sock eval 'return redis.call("get", KEYS[1]) .. "!"' 1 greeting
cli subscribe news > got & listening() { cli pubsub numsub news | grep -qx 1; }
ready listening; cli publish news item; ready grep -qx item got; tail -1 got
redis-benchmark -p 6399 -q -n 2000 -c 20 -P 4 -t ping,set,get,lpush,lrange_100 | tr '\\r' '\\n' |
  grep -c 'requests per second'
redis-benchmark -s /tmp/redis.sock -q -n 1000 -c 10 -t set,get | tr '\\r' '\\n' | grep -c 'requests per second'
cli eval 'for i = 1, 5000 do redis.call("set", "key" .. i, i) end' 0 > /dev/null
cli bgsave > /dev/null; ready grep -q 'saving terminated with success' log
test -s dump.rdb && test $(cli dbsize) -gt 5000 && echo saved
cli shutdown nosave 2> /dev/null || true; wait $server
"""

NGINX = """
mkdir -p www one; echo hello > www/index.html; head -c 3000000 /dev/urandom > www/large
cat > nginx.conf <<'X'
worker_processes 2;
error_log /tmp/error.log info;
pid /tmp/nginx.pid;
events { worker_connections 128; }
http {
  access_log /tmp/access.log;
  sendfile on; tcp_nopush on;
  upstream backend { server 127.0.0.1:8091; server unix:/tmp/backend.sock; }
  server { listen 127.0.0.1:8090; location / { root /tmp/www; } location /proxy/ { proxy_pass http://backend/; } }
  server { listen 127.0.0.1:8091; listen unix:/tmp/backend.sock; location / { root /tmp/www; } }
}
X
nginx -c /tmp/nginx.conf -e /tmp/error.log
ready wget -qO- http://127.0.0.1:8090/
cat > client.py <<'X'
import hashlib, http.client, threading
def ask(count, path):
    line = http.client.HTTPConnection("127.0.0.1", 8090)
    for _ in range(count):
        line.request("GET", path)
        answer = line.getresponse()
        assert (answer.status, answer.read()) == (200, b"hello\\n"), path
threads = [threading.Thread(target=ask, args=(125, path)) for path in ("/", "/proxy/") * 4]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
for path in ("/large", "/proxy/large"):
    line = http.client.HTTPConnection("127.0.0.1", 8090)
    line.request("GET", path)
    assert hashlib.sha1(line.getresponse().read()).digest() == hashlib.sha1(open("www/large", "rb").read()).digest()
print("served")
X
python3 client.py
test $(grep -c '"GET / HTTP/1.[01]" 200' access.log) -ge 1000 && echo logged
old=$(cat nginx.pid); nginx -c /tmp/nginx.conf -s reload; sleep 1; wget -qO- http://127.0.0.1:8090/
nginx -c /tmp/nginx.conf -s quit; for i in $(seq 100); do test -e nginx.pid || break; sleep 0.1; done
test -e nginx.pid || echo ended
! grep -E '\\[(alert|crit|emerg)\\]' error.log
"""

APACHE = """
echo '<?php echo "php ", array_sum(range(1, 100)), " ", strlen(file_get_contents("php://input")), "\\n";' > sum.php
mkdir -p www && mv sum.php www/ && echo plain > www/index.html && chmod -R a+rX www
sed -i 's/^Listen 80/Listen 127.0.0.1:8092/' /etc/apache2/ports.conf
cat > /etc/apache2/sites-enabled/000-default.conf <<'X'
ServerName localhost
DocumentRoot /tmp/www
<Directory /tmp/www>
  Require all granted
</Directory>
X
apachectl start
ready wget -qO- http://127.0.0.1:8092/
wget -qO- http://127.0.0.1:8092/; wget -qO- --post-data=12345 http://127.0.0.1:8092/sum.php
ab -q -n 200 -c 8 http://127.0.0.1:8092/sum.php 2>&1 | grep -E 'Complete|Failed' | tr -s ' '
apachectl graceful; sleep 1; wget -qO- http://127.0.0.1:8092/sum.php
apachectl stop
"""

POSTGRES = """
bin=$(ls -d /usr/lib/postgresql/*/bin); export PATH=$bin:$PATH
mkdir data && chown postgres data
as() { setpriv --reuid=postgres --regid=postgres --clear-groups env HOME=/tmp "$@"; }
as initdb -D data -A trust > init.log
as pg_ctl -D data -o '-k /tmp -h 127.0.0.1 -p 5499' -l data/log -w start > start.log
ask() { as psql -p 5499 -d postgres -At "$@"; }
ask -h /tmp -c 'create table t as select g, md5(g::text) m from generate_series(1, 20000) g' -c 'select max(m) from t'
ask -h 127.0.0.1 -c 'set max_parallel_workers_per_gather = 2' -c 'set parallel_setup_cost = 0' \
  -c 'set min_parallel_table_scan_size = 0' -c 'select count(*) from t where m like $$%a%$$' | tail -1
as pgbench -h 127.0.0.1 -p 5499 -i -q postgres > bench.log 2>&1
as pgbench -h 127.0.0.1 -p 5499 -c 4 -j 2 -t 30 postgres 2>&1 | grep -E 'processed|failed' | head -2
ask -h /tmp -c 'select count(*) from pgbench_history'
as pg_ctl -D data -w -m immediate stop > stop.log
as pg_ctl -D data -o '-k /tmp -h 127.0.0.1 -p 5499' -l data/log -w start > start.log
ask -h /tmp -c 'select count(*) from pgbench_history'
as pg_ctl -D data -w stop > stop.log
"""

MARIADB = """
mkdir data; mariadb-install-db --no-defaults --user=root --datadir=/tmp/data > install.log 2>&1
start() {
  mariadbd --no-defaults --user=root --datadir=/tmp/data --socket=/tmp/sock --port=3399 --bind-address=127.0.0.1 \
    --innodb-buffer-pool-size=32M --pid-file=/tmp/pid > log 2>&1 & server=$!
  ready mariadb-admin --no-defaults -S /tmp/sock ping
}
ask() { mariadb --no-defaults -S /tmp/sock -N -e "$1"; }
start
ask "create database d; use d; create table d.t (i int auto_increment primary key, v varchar(40)) engine=innodb;
     insert into d.t (v) select md5(seq) from seq_1_to_5000; select count(*), max(v) from d.t"
ask "create user u@'127.0.0.1' identified by 'secret'; grant all on d.* to u@'127.0.0.1'"
mariadb --no-defaults -h 127.0.0.1 -P 3399 -u u -psecret -N -e 'select count(*) from d.t where v like "%ff%"'
mariadb-slap --no-defaults -S /tmp/sock -a -c 4 --number-of-queries=200 | grep -c seconds
kill -9 $server; wait $server || true
start; ask 'select count(*) from d.t'; mariadb-admin --no-defaults -S /tmp/sock shutdown; wait $server
"""


@NETWORKS
def test_redis(cm: Casemate, programs: str, network: str) -> None:
    assert serve(cm, programs, network, REDIS) == ["OK", "hello", "hello!", "1", "item", "7", "2", "saved"]


@NETWORKS
def test_nginx(cm: Casemate, programs: str, network: str) -> None:
    assert serve(cm, programs, network, NGINX) == ["served", "logged", "hello", "ended"]


def test_apache_with_php(cm: Casemate, programs: str) -> None:
    assert serve(cm, programs, "none", APACHE) == [
        "plain", "php 5050 5", "Complete requests: 200", "Failed requests: 0", "php 5050 0",
    ]  # fmt: skip


def test_postgres(cm: Casemate, programs: str) -> None:
    lines = serve(cm, programs, "none", POSTGRES)
    assert lines[:2] == ["SELECT 20000", "fffb8ef15de06d87e6ba6c830f3b6284"]
    assert int(lines[2]) > 10000
    assert "120/120" in lines[3] and lines[4].startswith("number of failed transactions: 0 ")
    # What was committed is there after a crash.
    assert lines[5:] == ["120", "120"]


def test_mariadb(cm: Casemate, programs: str) -> None:
    lines = serve(cm, programs, "none", MARIADB)
    assert lines[0].startswith("5000\t") and int(lines[1]) > 100
    assert lines[2:] == ["3", "5000"]
