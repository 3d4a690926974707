"""Counts how PixTools' jobs ended: a consumer of the log to begin with, in Python.

    KAFKA_BROKERS=127.0.0.1:9092 python docs/consumers/python/finals.py --until-end

It knows of PixTools what is published, and no more: the topic, the headers and the
descriptor set. docs/consumers/README.md tells its configuration.
"""
import argparse
import collections
import json
import os
import signal
import sys

from confluent_kafka import Consumer, KafkaError, KafkaException
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.message import DecodeError

TOPIC = "pixtools.jobs.v1"
TYPE_PREFIX = "pixtools.events.v1."
REMEMBERED_IDS = 100_000  # of the newest events; repeats come soon after the first


def read_types(path):
    """The descriptor set: types found by name, without generated code."""
    pool = descriptor_pool.DescriptorPool()
    with open(path, "rb") as f:
        for file in descriptor_pb2.FileDescriptorSet.FromString(f.read()).file:
            pool.Add(file)
    return pool


class Tally:
    """What was read. It is in memory only: what a program of yours makes of events belongs
    in a database, at best in one transaction with the position."""

    def __init__(self, types, show):
        self.types, self.show = types, show
        self.seen = collections.OrderedDict()
        self.events = 0  # counted once each
        self.repeats = 0  # of an event that was counted
        self.unknown = 0  # of a type that is newer than the descriptor set
        self.broken = 0  # not to be decoded
        self.finals = collections.Counter()  # JobFinalized, by outcome

    def count(self, record):
        headers = {name: value.decode() for name, value in record.headers() or []}
        kind = headers.get("ce_type", "")
        try:
            if not kind.startswith(TYPE_PREFIX):
                raise KeyError(kind)
            descriptor = self.types.FindMessageTypeByName(kind)
        except KeyError:
            self.unknown += 1
            return
        try:
            message = message_factory.GetMessageClass(descriptor).FromString(record.value() or b"")
            self.event(headers["ce_id"], headers, message)
        except (DecodeError, KeyError) as fault:
            # Yours may stop here, or keep the record aside; it must not just go on.
            self.broken += 1
            print("partition %d offset %d: %r" % (record.partition(), record.offset(), fault), file=sys.stderr)

    def event(self, id, headers, message):
        if id in self.seen:
            self.repeats += 1
            return
        self.seen[id] = None
        if len(self.seen) > REMEMBERED_IDS:
            self.seen.popitem(last=False)
        self.events += 1
        if message.DESCRIPTOR.name == "JobFinalized":
            self.finals[outcome(message)] += 1
        if self.show:
            print(json.dumps({"headers": headers,
                              "data": json_format.MessageToDict(message, preserving_proto_field_name=True)}))

    def line(self):
        return json.dumps({"events": self.events, "repeats": self.repeats, "unknown": self.unknown,
                           "broken": self.broken, "finals": dict(sorted(self.finals.items()))})


def outcome(final):
    value = final.DESCRIPTOR.fields_by_name["outcome"].enum_type.values_by_number.get(final.outcome)
    if value is None:  # newer than the descriptor set
        return str(final.outcome)
    return value.name.removeprefix("OUTCOME_")


def settings():
    env = os.environ
    security = {"security.protocol": env.get("KAFKA_SECURITY_PROTOCOL", "PLAINTEXT")}
    if security["security.protocol"].startswith("SASL_"):
        security |= {"sasl.mechanism": "SCRAM-SHA-512",
                     "sasl.username": env["KAFKA_USERNAME"], "sasl.password": env["KAFKA_PASSWORD"]}
    return security | {
        "bootstrap.servers": env.get("KAFKA_BROKERS", "127.0.0.1:9092"),
        "group.id": env.get("CONSUMER_GROUP", "example-finals"),
        "auto.offset.reset": "earliest",  # a new group begins where the log does
        "isolation.level": "read_committed",  # what was aborted never happened
        # Only what was handled is stored, and only what is stored is committed: every few
        # seconds, when partitions are taken away, and at the end. At least once, therefore.
        "enable.auto.commit": True,
        "enable.auto.offset.store": False,
        "partition.assignment.strategy": "cooperative-sticky",
        "enable.partition.eof": True,  # says when a partition's end is reached
    }


def main():
    parser = argparse.ArgumentParser(description="Counts how PixTools' jobs ended.")
    parser.add_argument("--until-end", action="store_true", help="end at the log's present end")
    parser.add_argument("--events", action="store_true", help="print each event, too")
    options = parser.parse_args()
    tally = Tally(read_types(os.environ.get("DESCRIPTORS", "schemas/descriptors.binpb")), options.events)

    stopped = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.append(True))

    # The callbacks run within poll and close, hence between two records. The offsets that
    # were stored are committed by the client before a partition goes.
    behind, joined = set(), []

    def assigned(_, partitions):
        joined.append(True)
        behind.update(p.partition for p in partitions)

    def gone(_, partitions):
        behind.difference_update(p.partition for p in partitions)

    consumer = Consumer(settings())
    consumer.subscribe([TOPIC], on_assign=assigned, on_revoke=gone, on_lost=gone)
    try:
        while not stopped and not (options.until_end and joined and not behind):
            record = consumer.poll(1.0)
            if record is None:
                continue
            if record.error() is None:
                tally.count(record)
                consumer.store_offsets(record)
            elif record.error().code() == KafkaError._PARTITION_EOF:
                behind.discard(record.partition())
            elif record.error().fatal() or not record.error().retriable():
                raise KafkaException(record.error())
    finally:
        consumer.close()  # commits what is stored, and leaves the group
    print(tally.line())


if __name__ == "__main__":
    main()
