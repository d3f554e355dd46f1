# What coreutils, findutils, tar, cpio and flock do with files; the same output natively and behind the sentry.
# Argument: a directory that is not there yet, and is removed at the end.
set -u
mkdir "$1" && cd "$1" || exit 1
umask 022
seq 1 20000 > n; sort -R n | sort -n | cmp - n && echo sorted
split -l 3000 n part.; ls part.* | wc -l; cat part.* | md5sum
dd if=/dev/zero of=z bs=1M count=3 status=none; dd if=z of=z2 bs=4k conv=sparse status=none; stat -c %s z2
truncate -s 5M sparse; du -k sparse; cp --sparse=always sparse sparse2; du -k sparse2; fallocate -l 1M fa; stat -c '%s' fa
cp -a /etc/alternatives alt; diff -r /etc/alternatives alt && echo same; ls alt | wc -l
mkdir -p d/{a,b,c}/{x,y}; find d | sort; find d -type d -empty | wc -l; touch d/a/x/f; find d -newer n -name f
install -m 750 -D n i/j/k; stat -c '%a %U' i/j/k; mv i m; ls m/j
ln n hard; ln -s n soft; ln -sf /nowhere dang; readlink -f soft; readlink dang; stat -c '%h' n; test -L dang && ! test -e dang && echo dangling
mkfifo p; (echo through > p &) ; cat p
tar czf t.tgz d m alt; mkdir out; tar xzf t.tgz -C out; diff -r d out/d && echo tar; tar tzf t.tgz | wc -l
find . -name 'part.*' -print0 | xargs -0 rm -v | wc -l
chmod -R u=rwX,go= d; stat -c %a d d/a/x/f; chown -R 1000:1000 d; stat -c %u:%g d/a; 
(flock 9; echo locked) 9> lockfile; flock -n lockfile -c 'flock -n lockfile -c "echo twice" || echo busy'
mktemp -d -p . tXXXX | wc -c; tee copy < n | tail -1; comm -12 n copy | wc -l; shred -u copy; test -e copy || echo shredded
rmdir d 2>&1; rm -rf d; test -d d || echo gone; ls -la --time-style=+ | awk '{print $1,$2,$5,$6,$7,$8}' | sort | grep -v '^total' | grep -v '^d' | grep -v 'tgz' | grep -v ' z2\? '
rm -f z z2 sparse*; df . > /dev/null && echo df; sync; pwd -P | wc -l
cpio -o < /dev/null 2>/dev/null | wc -c; (cd out; find . | cpio -o -H newc 2>/dev/null) | (mkdir c2; cd c2; cpio -id 2>/dev/null); diff -r out c2 && echo cpio
echo a > x; exec 5<>x; cat <&5; echo b >&5; exec 5>&-; cat x
for i in 1 2 3; do echo $i; done > loop; cat loop > /dev/stdout | wc -l; echo err > /dev/stderr; cat < /dev/fd/0 <<< here; paste <(seq 3) <(seq 4 6)
cat /proc/self/mounts > /dev/null && echo mounts; cd ..; rm -rf "$1"; test -e "$1" || echo removed
