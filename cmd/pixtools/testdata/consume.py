"""Reads every event of one job, knowing nothing of PixTools but its contract: a Kafka
client of another make, and protobuf's own reflection over the published descriptors.

usage: consume.py BROKERS DESCRIPTORS JOB_ID SECONDS
Prints one JSON object per event, and ends after the job's JobFinalized.
"""
import json
import sys
import time

from confluent_kafka import Consumer, KafkaException, TopicPartition
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

brokers, descriptors, job_id, seconds = sys.argv[1:5]

pool = descriptor_pool.DescriptorPool()
with open(descriptors, "rb") as f:
    for proto in descriptor_pb2.FileDescriptorSet.FromString(f.read()).file:
        pool.Add(proto)

consumer = Consumer({
    "bootstrap.servers": brokers,
    "group.id": "not-ours-" + job_id,
    "auto.offset.reset": "earliest",
    "enable.auto.commit": False,
    "isolation.level": "read_committed",
})
topic = "pixtools.jobs.v1"
partitions = consumer.list_topics(topic, timeout=20).topics[topic].partitions
consumer.assign([TopicPartition(topic, p, 0) for p in partitions])

deadline = time.monotonic() + float(seconds)
while time.monotonic() < deadline:
    record = consumer.poll(1.0)
    if record is None:
        continue
    if record.error():
        raise KafkaException(record.error())
    if record.key().decode() != job_id:
        continue
    headers = {name: value.decode() for name, value in record.headers()}
    message = message_factory.GetMessageClass(pool.FindMessageTypeByName(headers["ce_type"]))()
    message.ParseFromString(record.value())
    print(json.dumps({
        "type": headers["ce_type"], "id": headers["ce_id"], "subject": headers["ce_subject"],
        "specversion": headers["ce_specversion"], "content_type": headers["content-type"],
        "causation": headers.get("ce_causationid", ""), "correlation": headers.get("ce_correlationid", ""),
        "data": json_format.MessageToDict(message, preserving_proto_field_name=True),
    }), flush=True)
    if headers["ce_type"].endswith(".JobFinalized"):
        consumer.close()
        sys.exit(0)
sys.exit("the job's end did not come within %s s" % seconds)
