package org.example.finals;

import com.google.protobuf.Descriptors.Descriptor;
import com.google.protobuf.DynamicMessage;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Message;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.Collection;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.TreeMap;
import java.util.concurrent.CountDownLatch;
import java.util.stream.Collectors;
import org.apache.kafka.clients.consumer.CommitFailedException;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.consumer.ConsumerRebalanceListener;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.CooperativeStickyAssignor;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.errors.RebalanceInProgressException;
import org.apache.kafka.common.errors.WakeupException;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.StringDeserializer;
import pixtools.events.v1.Events;

/**
 * Counts how PixTools' jobs ended: a consumer of the log to begin with, in Java.
 *
 * <p>It knows of PixTools what is published, and no more: the topic, the headers and the .proto
 * file, of which the build makes classes. docs/consumers/README.md tells its configuration.
 */
public final class Finals {
  private static final String TOPIC = "pixtools.jobs.v1";
  private static final String TYPE_PREFIX = "pixtools.events.v1.";
  /** Of the newest events; repeats come soon after the first. */
  private static final int REMEMBERED_IDS = 100_000;

  private static final Duration POLL = Duration.ofSeconds(1);

  private final KafkaConsumer<String, byte[]> consumer;

  // What was read. It is in memory only: what a program of yours makes of events belongs in a
  // database, at best in one transaction with the position.
  private long events; // counted once each
  private long repeats; // of an event that was counted
  private long unknown; // of a type that is newer than the classes
  private long broken; // not to be decoded
  private final Map<String, Long> finals = new TreeMap<>(); // JobFinalized, by outcome

  private final Map<String, Boolean> seen =
      new LinkedHashMap<>() {
        @Override
        protected boolean removeEldestEntry(Map.Entry<String, Boolean> eldest) {
          return size() > REMEMBERED_IDS;
        }
      };

  private boolean joined;
  private final Map<TopicPartition, Long> ends = new HashMap<>();

  private Finals(KafkaConsumer<String, byte[]> consumer) {
    this.consumer = consumer;
  }

  public static void main(String[] args) throws Exception {
    boolean untilEnd = List.of(args).contains("--until-end");
    CountDownLatch done = new CountDownLatch(1);
    try (KafkaConsumer<String, byte[]> consumer = new KafkaConsumer<>(settings())) {
      // At a signal: leave poll, commit, leave the group, and only then end.
      Runtime.getRuntime()
          .addShutdownHook(
              new Thread(
                  () -> {
                    consumer.wakeup();
                    try {
                      done.await();
                    } catch (InterruptedException e) {
                      Thread.currentThread().interrupt();
                    }
                  }));
      Finals tally = new Finals(consumer);
      tally.run(untilEnd);
      System.out.println(tally.line());
      System.out.flush();
    } finally {
      done.countDown();
    }
  }

  private void run(boolean untilEnd) {
    consumer.subscribe(List.of(TOPIC), new Assignment());
    try {
      while (!(untilEnd && reachedEnd())) {
        for (ConsumerRecord<String, byte[]> record : consumer.poll(POLL)) {
          count(record);
        }
        commit();
      }
    } catch (WakeupException e) {
      // told to end; what was handled since the last commit is read again
    }
  }

  /**
   * After the work: at least once. Partitions are taken away within poll, when all that it gave
   * before is committed; so there is nothing to do for those that go.
   */
  private void commit() {
    try {
      consumer.commitSync();
    } catch (RebalanceInProgressException | CommitFailedException e) {
      // The next poll says what we keep, which the next commit covers. Whoever gets the rest
      // reads some of it again.
    }
  }

  private void count(ConsumerRecord<String, byte[]> record) {
    String type = header(record, "ce_type");
    Descriptor known = null;
    if (type.startsWith(TYPE_PREFIX)) {
      String name = type.substring(TYPE_PREFIX.length());
      known = Events.getDescriptor().findMessageTypeByName(name);
    }
    if (known == null) {
      unknown++;
      return;
    }
    try {
      event(header(record, "ce_id"), decode(known, record.value()));
    } catch (InvalidProtocolBufferException | IllegalArgumentException e) {
      // Yours may stop here, or keep the record aside; it must not just go on.
      broken++;
      System.err.printf("partition %d offset %d: %s%n", record.partition(), record.offset(), e);
    }
  }

  private void event(String id, Message message) {
    if (id.isEmpty()) {
      throw new IllegalArgumentException("the header ce_id is missing");
    }
    if (seen.put(id, true) != null) {
      repeats++;
      return;
    }
    events++;
    if (message instanceof Events.JobFinalized done) {
      finals.merge(outcome(done), 1L, Long::sum);
    }
  }

  /** The types that the program works with become their classes. */
  private static Message decode(Descriptor type, byte[] value)
      throws InvalidProtocolBufferException {
    byte[] bytes = value == null ? new byte[0] : value;
    if (type.equals(Events.JobFinalized.getDescriptor())) {
      return Events.JobFinalized.parseFrom(bytes);
    }
    return DynamicMessage.parseFrom(type, bytes);
  }

  private static String outcome(Events.JobFinalized done) {
    if (done.getOutcome() == Events.Outcome.UNRECOGNIZED) { // newer than the classes
      return Integer.toString(done.getOutcomeValue());
    }
    return done.getOutcome().name().replaceFirst("^OUTCOME_", "");
  }

  private static String header(ConsumerRecord<String, byte[]> record, String name) {
    Header header = record.headers().lastHeader(name);
    return header == null ? "" : new String(header.value(), StandardCharsets.UTF_8);
  }

  private String line() {
    String byOutcome =
        finals.entrySet().stream()
            .map(e -> "\"" + e.getKey() + "\":" + e.getValue())
            .collect(Collectors.joining(","));
    return String.format(
        "{\"events\":%d,\"repeats\":%d,\"unknown\":%d,\"broken\":%d,\"finals\":{%s}}",
        events, repeats, unknown, broken, byOutcome);
  }

  /** Whether each partition that we have was read to the end that it had when we got it. */
  private boolean reachedEnd() {
    return joined
        && ends.entrySet().stream().allMatch(e -> consumer.position(e.getKey()) >= e.getValue());
  }

  /** Called within poll. */
  private final class Assignment implements ConsumerRebalanceListener {
    @Override
    public void onPartitionsAssigned(Collection<TopicPartition> partitions) {
      ends.putAll(consumer.endOffsets(partitions));
      joined = true;
    }

    @Override
    public void onPartitionsRevoked(Collection<TopicPartition> partitions) {
      ends.keySet().removeAll(partitions);
    }
  }

  private static Properties settings() {
    Properties p = new Properties();
    p.put(ConsumerConfig.BOOTSTRAP_SERVERS_CONFIG, setting("KAFKA_BROKERS", "127.0.0.1:9092"));
    p.put(ConsumerConfig.GROUP_ID_CONFIG, setting("CONSUMER_GROUP", "example-finals"));
    p.put(ConsumerConfig.KEY_DESERIALIZER_CLASS_CONFIG, StringDeserializer.class.getName());
    p.put(ConsumerConfig.VALUE_DESERIALIZER_CLASS_CONFIG, ByteArrayDeserializer.class.getName());
    // A new group begins where the log does.
    p.put(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG, "earliest");
    // What was aborted never happened.
    p.put(ConsumerConfig.ISOLATION_LEVEL_CONFIG, "read_committed");
    p.put(ConsumerConfig.ENABLE_AUTO_COMMIT_CONFIG, "false");
    p.put(
        ConsumerConfig.PARTITION_ASSIGNMENT_STRATEGY_CONFIG,
        CooperativeStickyAssignor.class.getName());
    String protocol = setting("KAFKA_SECURITY_PROTOCOL", "PLAINTEXT");
    p.put("security.protocol", protocol);
    if (protocol.startsWith("SASL_")) {
      p.put("sasl.mechanism", "SCRAM-SHA-512");
      p.put(
          "sasl.jaas.config",
          String.format(
              "org.apache.kafka.common.security.scram.ScramLoginModule required"
                  + " username=\"%s\" password=\"%s\";",
              System.getenv("KAFKA_USERNAME"), System.getenv("KAFKA_PASSWORD")));
    }
    return p;
  }

  private static String setting(String name, String otherwise) {
    String value = System.getenv(name);
    return value == null || value.isEmpty() ? otherwise : value;
  }
}
