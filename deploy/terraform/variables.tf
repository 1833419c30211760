variable "region" {
  type        = string
  description = "The AWS region of everything. The provider must be configured for the same."

  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]$", var.region))
    error_message = "region must be the name of an AWS region, such as eu-central-1."
  }
}

variable "table_name" {
  type        = string
  default     = "SandboxPool"
  description = "DDB_TABLE_NAME of every process."

  validation {
    condition     = can(regex("^[A-Za-z0-9_.-]{3,255}$", var.table_name))
    error_message = "table_name must have 3 to 255 letters, digits, underscores, dots or hyphens."
  }
}

variable "alarm_topic_arn" {
  type        = string
  description = "The SNS topic that alarms are sent to."

  validation {
    condition     = can(regex("^arn:aws[a-z-]*:sns:", var.alarm_topic_arn))
    error_message = "alarm_topic_arn must be the ARN of an SNS topic."
  }
}

variable "image" {
  type        = string
  description = "The image of the broker in ECR, with its tag or digest."

  validation {
    condition     = can(regex("^[^:@]+(:[^:@]+|@sha256:[0-9a-f]{64})$", var.image)) && !endswith(var.image, ":latest")
    error_message = "image must name a tag other than latest, or a digest, so that every process runs the same release."
  }
}

variable "image_repository_arn" {
  type        = string
  description = "The ECR repository of the image."

  validation {
    condition     = can(regex("^arn:aws[a-z-]*:ecr:", var.image_repository_arn))
    error_message = "image_repository_arn must be the ARN of an ECR repository."
  }
}

variable "secrets" {
  type = object({
    REDIS_URL                  = string
    BROKER_API_TOKEN           = string
    BROKER_ADMIN_TOKEN         = string
    CSP_API_TOKEN              = string
    CONSOLE_SECRET_KEY         = optional(string)
    OIDC_CLIENT_SECRET         = optional(string)
    CSP_SERVICES_EMAIL         = optional(string)
    CSP_SERVICES_PASSWORD      = optional(string)
    OTEL_EXPORTER_OTLP_HEADERS = optional(string)
  })
  description = "Where each secret is: its ARN in Secrets Manager or in the Parameter Store. Never its value."

  validation {
    condition = alltrue([
      for reference in values(var.secrets) : reference == null || can(regex("^arn:aws[a-z-]*:(secretsmanager:.*:secret|ssm:.*:parameter)[:/]", reference))
    ])
    error_message = "secrets must have ARNs of Secrets Manager or of the Parameter Store, not values."
  }
}

variable "secret_key_arns" {
  type        = list(string)
  default     = []
  description = "The KMS keys of the secrets, if they are encrypted with keys of your own."
}

variable "recycle_policy" {
  type        = string
  description = "RECYCLE_POLICY of the API and the workers: what happens with a sandbox after its wipe."

  validation {
    condition     = contains(["confirm", "retire", "reuse"], var.recycle_policy)
    error_message = "recycle_policy must be confirm, retire or reuse."
  }
}

variable "provider_url" {
  type        = string
  description = "CSP_BASE_URL of the workers: where the provider of the sandboxes is."

  validation {
    condition     = startswith(var.provider_url, "https://")
    error_message = "provider_url must begin with https://."
  }
}

variable "api_url" {
  type        = string
  description = "BROKER_API_URL of the console: the API with its base path, as the console reaches it."

  validation {
    condition     = startswith(var.api_url, "https://")
    error_message = "api_url must begin with https://, because each call carries the person's token."
  }
}

variable "settings" {
  type        = map(map(string))
  default     = {}
  description = "More settings of a process, by its name: { api = { API_WORKERS = \"4\" } }. See docs/settings.md."

  validation {
    condition     = length(setsubtract(keys(var.settings), ["api", "console", "worker-jobs", "worker-deletions", "worker-webhooks", "beat"])) == 0
    error_message = "settings may name api, console, worker-jobs, worker-deletions, worker-webhooks and beat."
  }

  # Terraform keeps settings in its state as they are. The last three no process needs: those headers are the same as
  # OTEL_EXPORTER_OTLP_HEADERS, and a task gets its rights on AWS by its role.
  validation {
    condition = alltrue([
      for settings in values(var.settings) : length(setintersection(keys(settings), [
        "REDIS_URL",
        "BROKER_API_TOKEN",
        "BROKER_ADMIN_TOKEN",
        "CSP_API_TOKEN",
        "CONSOLE_SECRET_KEY",
        "OIDC_CLIENT_SECRET",
        "CSP_SERVICES_EMAIL",
        "CSP_SERVICES_PASSWORD",
        "OTEL_EXPORTER_OTLP_HEADERS",
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
      ])) == 0
    ])
    error_message = "settings must not have secrets: they belong to the variable secrets, by reference."
  }
}

variable "cluster_name" {
  type        = string
  description = "The ECS cluster that the services run in."
}

variable "subnet_ids" {
  type        = list(string)
  description = "Private subnets of the tasks, in two zones or more."

  validation {
    condition     = length(var.subnet_ids) >= 2
    error_message = "subnet_ids must have two subnets or more, so that the loss of a zone does not stop the API."
  }
}

variable "security_group_ids" {
  type        = list(string)
  description = "Security groups of the tasks."

  validation {
    condition     = length(var.security_group_ids) >= 1
    error_message = "security_group_ids must have at least one security group."
  }
}

variable "api_target_group_arn" {
  type        = string
  description = "The load balancer's target group (of IP addresses) for the API. Its health check asks /readyz."
}

variable "console_target_group_arn" {
  type        = string
  default     = null
  description = "The load balancer's target group for the console, which asks /readyz. Without it no console runs, and CONSOLE_SECRET_KEY is not needed."
}

variable "api_tasks" {
  type        = object({ min = number, max = number })
  default     = { min = 2, max = 10 }
  description = "How many tasks of the API run. It scales by its processor time."

  validation {
    condition     = var.api_tasks.min >= 1 && var.api_tasks.min <= var.api_tasks.max
    error_message = "api_tasks must have 1 <= min <= max."
  }
}

variable "worker_tasks" {
  type = object({
    worker-jobs      = optional(object({ min = number, max = number }), { min = 2, max = 3 })
    worker-deletions = optional(object({ min = number, max = number }), { min = 1, max = 2 })
    worker-webhooks  = optional(object({ min = number, max = number }), { min = 1, max = 2 })
  })
  default     = {}
  description = "How many tasks of each worker run. They scale by the length of their queue."

  validation {
    condition     = alltrue([for each in values(var.worker_tasks) : each.min >= 1 && each.min <= each.max])
    error_message = "worker_tasks must have 1 <= min <= max."
  }
}

variable "log_retention_days" {
  type        = number
  default     = 30
  description = "After how many days log lines are removed."

  validation {
    condition     = contains([1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653], var.log_retention_days)
    error_message = "log_retention_days must be a number of days that CloudWatch knows: 1, 3, 5, 7, 14, 30, 60, 90 ..."
  }
}
