import org.apache.kafka.common.security.auth.AuthenticationContext;
import org.apache.kafka.common.security.auth.KafkaPrincipal;
import org.apache.kafka.common.security.authenticator.DefaultKafkaPrincipalBuilder;

/**
 * Whoever comes in by the listener AS_NAME is User:name, without a password: for tests of ACLs
 * with programs that have no settings for one. Other listeners are as always.
 */
public final class ByListener extends DefaultKafkaPrincipalBuilder {
  private static final String PREFIX = "AS_";

  public ByListener() {
    super(null, null);
  }

  @Override
  public KafkaPrincipal build(AuthenticationContext context) {
    String listener = context.listenerName();
    if (!listener.startsWith(PREFIX)) {
      return super.build(context);
    }
    String name = listener.substring(PREFIX.length()).toLowerCase();
    return new KafkaPrincipal(KafkaPrincipal.USER_TYPE, name.replace('_', '-'));
  }
}
