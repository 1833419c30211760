# Stand-ins for the images of others in deploy/compose.yaml, made of Debian's packages. Each has the user, the directory,
# the entry point and the commands that the compose file expects. They are for tests: never pass them on, because the
# licence of DynamoDB Local forbids that.

ARG BASE
FROM $BASE AS tools
RUN apt-get update -q \
    && apt-get install -qy --no-install-recommends curl openjdk-17-jre-headless prometheus redis-tools wget

FROM tools AS dynamodb
RUN useradd --uid 1000 --create-home dynamodblocal
COPY DynamoDBLocal.jar /home/dynamodblocal/
COPY DynamoDBLocal_lib /home/dynamodblocal/DynamoDBLocal_lib
WORKDIR /home/dynamodblocal
USER dynamodblocal
ENTRYPOINT ["java"]

FROM tools AS redis
RUN groupadd --gid 1000 valkey && useradd --uid 999 --gid 1000 --no-create-home valkey \
    && mkdir /data && ln -s /usr/bin/redis-cli /usr/local/bin/valkey-cli
COPY valkey-server /usr/local/bin/
WORKDIR /data
# In the real image this is the default.
ENTRYPOINT ["sh", "-c", "exec \"$@\" --protected-mode no", "sh"]

FROM tools AS prometheus
RUN mkdir /prometheus
USER nobody
ENTRYPOINT ["prometheus"]
