#!/usr/bin/env python3
"""Writes corpus.tsv: what PyYAML makes of plain scalars. Run it with PyYAML installed:

    python3 make_corpus.py > corpus.tsv
"""
import datetime
import json
import math

import yaml

TEXTS = """
y Y n N yes Yes YES yEs no No NO true True TRUE tRUE false False FALSE on On ON oN off Off OFF
~ null Null NULL nULL none None
0 -0 +0 1 -1 +1 10 007 0755 0644 -0755 08 09 0o17 00 0_7 1_000 1_000_000 -1_0 _1 1_ 0x10 0xff 0xFF 0XFF -0x1F 0x_ff
0b101 -0b11 0b1_0 0b2 0B1 9223372036854775807 9223372036854775808 18446744073709551615 1e3 1E3 1e+3 1.0e3
1.0e+3 1.5e-3 1.e+3 -1.5E+10 .5 +.5 -.5 .5e+3 1. 0. 00.5 01.5 1_0.5 1.5_5 1.2.3 ._5 .inf -.inf +.inf .Inf .INF .iNF
.nan .NaN .NAN -.nan inf nan . .. ... - -- + 1:30 1:30:45 12:30:45 190:20:30 -1:30 +1:30 1:60 1:5 1:05 0:30
00:30 1:30.5 0:30.5 190:20:30.15 20:30:15 8008:5432 5432:5432 127.0.0.1 127.0.0.1:5432 10.0.0.1:8008 0.0.0.0
2001-12-14 2001-1-1 2001-13-45x 2001-12-14t21:59:43.10-05:00 2001-12-15T02:59:43.1Z 14d 500ms 1GiB 100MB 70%
md5 replica logical hot_standby postgres /var/lib/postgresql C.UTF-8 en_US.UTF-8 UTF8 a,b = == << <<< 1,000 1kB
0.7 0.95 64 128MB 5min 8kB 1.1 %h %s ${x} truefalse onn no. 123abc 0x 0xg 1-2 1/2 1+1 +a -a e5 1e 1e- 1.5e3 1.5e+
""".split()
TEXTS += ["", "2001-12-14 21:59:43.10 -5", "2001-12-15 2:59:43.10", "hello world", "yes please", "1 2", "on off"]


def kind(value):
    if value is None:
        return "null", ""
    if isinstance(value, bool):
        return "bool", "true" if value else "false"
    if isinstance(value, int):
        return "int", str(value)
    if isinstance(value, float):
        if math.isnan(value):
            return "float", "nan"
        return "float", repr(value)
    if isinstance(value, (datetime.date, datetime.datetime)):
        return "timestamp", ""
    return "str", json.dumps(value)


print(f"# Written by make_corpus.py with PyYAML {yaml.__version__}: the text as JSON, its type, its value.")
for text in TEXTS:
    node = yaml.ScalarNode(yaml.SafeLoader("").resolve(yaml.ScalarNode, text, (True, False)), text)
    if node.tag.endswith(":merge") or node.tag.endswith(":value"):
        name, value = "str", json.dumps(text)
    else:
        try:
            name, value = kind(yaml.SafeLoader("").construct_object(node))
        except Exception as error:
            raise SystemExit(f"{text!r}: {error}")
    print(json.dumps(text), name, value, sep="\t")
